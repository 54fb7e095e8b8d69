"""Rights in XMP and IPTC data: PLUS data mining, creator, owner and licence of an image.

`plus:DataMining` (IPTC Photo Metadata Standard 2023.1) has a value from PLUS's vocabulary:

    http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING     refused, as every value that begins DMI-PROHIBITED
    http://ns.useplus.org/ldf/vocab/DMI-ALLOWED                     allowed
    http://ns.useplus.org/ldf/vocab/DMI-UNSPECIFIED                 says nothing

All prohibitions refuse: also those with constraints or licences to read (SEECONSTRAINT ...), since no person reads them
here, and those of generative training or of all uses but search, since a published dataset has other uses too.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lxml import etree

from pipeline.consent.policy import Signal, Statement, shorten

# In lower case, with what comes before a name; regular expressions take twenty times as long.
_WORTH_PARSING = (
    *(b"datamining", b"dmi-prohibited", b"reservation", b"webstatement", b"licensorurl"),
    *(start + name for start in (b":", b"<") for name in (b"rights", b"creator", b"license")),
)
_NOT_A_CREATOR = b":creatortool"  # a program, in most packets
_PROPERTIES = frozenset(
    {
        *("datamining", "reservation", "tdm-reservation", "rights", "creator"),
        *("license", "webstatement", "licensorurl"),
    }
)
_PROHIBITED = re.compile(r"prohibit", re.IGNORECASE)
_PROHIBITED_BYTES = re.compile(rb"DMI-PROHIBITED[A-Z-]*", re.IGNORECASE)
_PLUS = "useplus.org"
_RDF_RESOURCE = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}resource"
_MAX_PACKET_BYTES = 4 << 20
_PARSER_OPTIONS: dict[str, Any] = {"resolve_entities": False, "no_network": True, "recover": True, "huge_tree": False}

_IIM_BY_LINE, _IIM_COPYRIGHT = 80, 116


@dataclass(frozen=True, slots=True)
class Rights:
    """The rights stated in a file; each is None if not stated."""

    rights: str | None = None
    creator: str | None = None
    license_url: str | None = None

    def or_else(self, other: "Rights") -> "Rights":
        return Rights(self.rights or other.rights, self.creator or other.creator, self.license_url or other.license_url)


def read_xmp(packet: bytes) -> tuple[Rights, list[Statement]]:
    """Return the statements of an XMP packet; of a damaged one, only a prohibition that is still readable."""
    is_wide = b"\0" in packet[:64]  # UTF-16 or UTF-32
    if not is_wide and not _is_worth_parsing(packet):
        return Rights(), []
    root = _parse(packet)
    values: dict[str, list[str]] = {}
    statements = []
    for namespace, name, value in _properties(root) if root is not None else ():
        if name == "DataMining" and _PLUS in namespace:
            statements.append(_plus(value))
        elif name.lower() in ("reservation", "tdm-reservation") and "tdm" in namespace.lower():
            if value in ("0", "1"):
                statements.append(Statement(Signal.TDM_RESERVATION, f"{value} (XMP)", value == "1"))
        else:
            values.setdefault(f"{namespace.rstrip('/#').rpartition('/')[2]}:{name}", []).append(value)
    if not statements and (found := _PROHIBITED_BYTES.search(packet)) is not None:
        statements.append(_plus(found[0].decode()))
    return _rights(values), statements


def _is_worth_parsing(packet: bytes) -> bool:
    lower = packet.lower().replace(_NOT_A_CREATOR, b"")
    return any(name in lower for name in _WORTH_PARSING)


def read_iptc(resources: bytes) -> Rights:
    """Return the by-line and copyright notice of IPTC-IIM data in Photoshop's image resources."""
    at = resources.find(b"8BIM\x04\x04")
    if at < 0:
        return Rights()
    at += 6
    at += (resources[at] + 2) // 2 * 2 + 4 if at < len(resources) else 0  # a padded Pascal string, then the size
    found: dict[int, list[str]] = {}
    while resources[at : at + 1] == b"\x1c" and at + 5 <= len(resources):
        record, dataset, size = resources[at + 1], resources[at + 2], int.from_bytes(resources[at + 3 : at + 5])
        if record == 2 and dataset in (_IIM_BY_LINE, _IIM_COPYRIGHT) and size < 0x8000:
            found.setdefault(dataset, []).append(_text(resources[at + 5 : at + 5 + size]))
        at += 5 + size
    return Rights(_joined(found.get(_IIM_COPYRIGHT)), _joined(found.get(_IIM_BY_LINE)))


def _parse(packet: bytes) -> Any:
    begin = packet.find(b"<")
    if begin < 0 or len(packet) > _MAX_PACKET_BYTES:
        return None
    body = packet if b"\0" in packet[:64] else packet[begin:].rstrip(b"\0 \r\n\t")
    try:
        return etree.fromstring(body, etree.XMLParser(**_PARSER_OPTIONS))
    except (etree.XMLSyntaxError, ValueError):
        return None


def _properties(root: Any) -> Iterator[tuple[str, str, str]]:
    """Yield (namespace, name, value) of every property that is read here: attributes, elements with text, and items of
    their lists.
    """
    for element in root.iter("*"):
        for key, value in element.items():
            if key.startswith("{") and _is_read(key):
                yield *_split(key), value.strip()
        owner = element
        if element.tag.endswith("}li") and (parent := element.getparent()) is not None:
            owner = parent.getparent()
        if owner is None or not _is_read(owner.tag):
            continue
        if owner is element and (resource := element.get(_RDF_RESOURCE)):
            yield *_split(element.tag), resource.strip()
        if text := (element.text or "").strip():
            yield *_split(owner.tag), text


def _is_read(qualified: str) -> bool:
    return qualified.rpartition("}")[2].lower() in _PROPERTIES


def _split(qualified: str) -> tuple[str, str]:
    """Return (namespace, name) of "{namespace}name"; damaged files have names that lxml would reject."""
    namespace, _, name = qualified.removeprefix("{").rpartition("}")
    return namespace, name


def _plus(value: str) -> Statement:
    return Statement(Signal.PLUS_DATA_MINING, value.rpartition("/")[2], _PROHIBITED.search(value) is not None)


def _rights(values: dict[str, list[str]]) -> Rights:
    """Join the values of the properties about rights; of several licences the first counts."""
    licences = [
        *values.get("ns:license", []),  # cc:license
        *values.get("rights:WebStatement", []),
        *values.get("1.0:LicensorURL", []),  # plus:
    ]
    return Rights(
        _joined(values.get("1.1:rights")),  # dc:
        _joined(values.get("1.1:creator")),
        shorten(next(iter(licences), "")) or None,
    )


def _joined(values: Iterable[str] | None) -> str | None:
    return shorten("; ".join(dict.fromkeys(value for value in values or () if value))) or None


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8").strip("\0 ")
    except UnicodeDecodeError:
        return value.decode("cp1252", "replace").strip("\0 ")
