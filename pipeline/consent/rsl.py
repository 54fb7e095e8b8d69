"""Really Simple Licensing 1.0 (rslstandard.org): machine-readable licences, found by robots.txt or a Link header.

    License: https://example.com/license.xml                                            in robots.txt
    Link: <https://example.com/license.xml>; rel="license"; type="application/rsl+xml"   in a response

    <rsl xmlns="https://rslstandard.org/rsl">
      <content url="/images/*">
        <license>
          <permits type="usage">search</permits>
          <prohibits type="usage">ai-train</prohibits>
          <payment type="subscription"/>

Of the `content` elements that match a URL the most specific ones apply. Their terms refuse if one licence prohibits
training, or if none permits it to everyone, everywhere, free of charge: another usage is listed but not training, users
or countries are restricted, a payment other than attribution is due, or a licence must be requested from a server
first.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from lxml import etree

from pipeline.consent.path_patterns import PathPattern, path_of
from pipeline.consent.policy import Signal, Statement

MAX_BYTES = 500 * 1024

_OUR_USES = frozenset({"all", "ai-all", "ai-train", "train-ai"})
_FREE = frozenset({"free", "attribution"})
_LINK = re.compile(r"<([^<>]*)>((?:\s*;\s*[\w!#$&+.^`|~*-]+\s*(?:=\s*(?:\"[^\"]*\"|[^\s\",;]+))?)*)")


@dataclass(frozen=True, slots=True)
class RslContent:
    """The terms for some URLs: `refusal` is why training is not permitted, None if it is."""

    host: str | None
    pattern: PathPattern
    refusal: str | None


def licence_links(link_lines: Iterable[str], base_url: str) -> list[str]:
    """Return the URLs of the RSL documents in `Link` headers (RFC 8288)."""
    found = []
    for line in link_lines:
        for target, parameters in _LINK.findall(line):
            named = parameters.lower()
            if "license" in _parameter(named, "rel").split() and "rsl+xml" in _parameter(named, "type"):
                found.append(urljoin(base_url, target.strip()))
    return found


def read_rsl(body: bytes, document_url: str) -> tuple[RslContent, ...] | None:
    """Return the terms of an RSL document, or None if it is not a valid one."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True, huge_tree=False)
    try:
        root = etree.fromstring(body, parser)
    except (etree.XMLSyntaxError, ValueError):
        return None
    if root is None or _name(root) != "rsl":
        return None
    contents = [_content(element, document_url) for element in _children(root, "content")]
    return tuple(content for content in contents if content is not None)


def rsl_statement(contents: tuple[RslContent, ...] | None, licence_url: str, url: str) -> Statement | None:
    """Return the statement of a licence about a URL, None if it does not apply to it."""
    if contents is None:
        return Statement(Signal.RSL, f"the licence cannot be read: {licence_url}", refuses=True)
    host, path = urlsplit(url).hostname, path_of(url)
    matching = [c for c in contents if c.host in (None, host) and c.pattern.matches(path)]
    if not matching:
        return None
    longest = max(content.pattern.specificity for content in matching)
    refusals = [c.refusal for c in matching if c.pattern.specificity == longest and c.refusal is not None]
    text = refusals[0] if refusals else "permits training"
    return Statement(Signal.RSL, f"{text}: {licence_url}", bool(refusals))


def _content(element: Any, document_url: str) -> RslContent | None:
    url = (element.get("url") or "").strip()
    if not url:
        return None
    parts = urlsplit(url if "://" in url else urljoin(document_url, "/" + url.lstrip("/")))
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return RslContent(parts.hostname if "://" in url else None, PathPattern.parse(path), _refusal(element))


def _refusal(content: Any) -> str | None:
    if content.get("server"):
        return "a licence must be asked for"
    refusals = []
    for licence in _children(content, "license"):
        if _OUR_USES & _listed(licence, "prohibits", "usage"):
            return "prohibits training"
        refusals.append(_unmet(licence))
    return next((refusal for refusal in refusals if refusal), None) if refusals and all(refusals) else None


def _unmet(licence: Any) -> str | None:
    """Return the first term of a licence that we do not meet."""
    usage = _listed(licence, "permits", "usage")
    if usage and not usage & _OUR_USES:
        return f"permits {', '.join(sorted(usage))} only"
    if {e.get("type") for e in (*_children(licence, "permits"), *_children(licence, "prohibits"))} & {"user", "geo"}:
        return "depends on who uses it, or where"
    payments = {(payment.get("type") or "free").strip().lower() for payment in _children(licence, "payment")}
    if payments and not payments & _FREE:
        return f"has a price ({', '.join(sorted(payments))})"
    return None


def _listed(licence: Any, kind: str, what: str) -> set[str]:
    words: set[str] = set()
    for element in _children(licence, kind):
        if (element.get("type") or "usage").strip().lower() == what:
            words.update(re.split(r"[\s,]+", "".join(element.itertext()).strip().lower()))
    return words - {""}


def _children(element: Any, name: str) -> Iterator[Any]:
    return (child for child in element if _name(child) == name)


def _name(element: Any) -> str:
    return element.tag.rpartition("}")[2].lower() if isinstance(element.tag, str) else ""


def _parameter(parameters: str, name: str) -> str:
    found = re.search(rf";\s*{name}\s*=\s*(?:\"([^\"]*)\"|([^\s\",;]+))", parameters)
    return (found[1] or found[2] or "") if found is not None else ""
