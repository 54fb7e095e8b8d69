"""The URL normaliser: uids, plans, archives and redirects all compare URLs in this form. Parsing follows the WHATWG URL
standard, as in browsers:

    normalize_url("../a b.jpg", "HTTP://Example.com:80/x/y/z") == "http://example.com/x/a%20b.jpg"
"""

import ada_url

_AUTHORITY_START = len("http://")

# "Bad ports" of the WHATWG Fetch standard: mail, SSH, printers ... A link to one is an attack or a mistake.
# fmt: off
_BAD_PORTS = frozenset(map(str, (
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
    110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531,
    532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060,
    5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
)))
# fmt: on


def normalize_url(raw: str, base: str | None = None) -> str | None:
    """Return the absolute form of `raw`, resolved against `base`, or None if it cannot be fetched.

    Scheme and host are lower case, the host in ASCII (IDNA), numeric IPv4 spellings in dotted form, default ports and
    fragments dropped, dot segments resolved, tabs, newlines and outer whitespace removed, other characters
    percent-encoded if required. None for other schemes than http and https, URLs that do not parse (or whose base does
    not), URLs with user or password, ports that browsers block (SMTP, SSH ...), and empty references (HTML: an empty
    `src` is not an image). Normalising is idempotent.
    """
    if not raw or raw.isspace():
        return None
    try:
        url = ada_url.normalize_url(raw) if base is None else ada_url.join_url(base, raw)
    except ValueError:
        if _has_surrogates(raw):
            return normalize_url(raw.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), base)
        return None
    if not url.startswith(("http://", "https://")):
        return None
    # In a serialised URL "#" and "/" are percent-encoded or delimiters, never data of the parts before them.
    authority_end = url.index("/", _AUTHORITY_START + 1)
    authority = url[_AUTHORITY_START:authority_end]
    if "@" in authority or authority.rpartition(":")[2] in _BAD_PORTS:
        return None
    fragment_start = url.find("#", authority_end)
    return url if fragment_start < 0 else url[:fragment_start]


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
