"""Wikimedia Commons: files found by text (API:Search), with what their pages say of licence and author.

{"continue": {"gsroffset": 50, "continue": "gsroffset||"},
 "query": {"pages": [{"index": 1, "title": "File:A dog.jpg", "imageinfo": [{"url": ..., "extmetadata": {...}}]}]}}
"""

import html
import re
from collections.abc import Mapping
from typing import Any

from pipeline.search.interface import Continuation, Found, Page, ThrottledError

_MOST_RESULTS = 50
_THUMBNAIL_PX = 1_280  # one of the widths that Wikimedia keeps; originals can be a hundred times as large
_MAX_LAG_S = 5
_FACTS = "ImageDescription|ObjectName|LicenseShortName|LicenseUrl|Artist|Attribution"
_TAG = re.compile("<[^<>]*>")


class Commons:
    """The API of Wikimedia Commons, or of another MediaWiki at `base_url`."""

    def __init__(self, base_url: str | None) -> None:
        self.url = f"{base_url or 'https://commons.wikimedia.org'}/w/api.php"

    def parameters(self, query: str, continuation: Continuation, wanted: int) -> dict[str, str]:
        """See `SearchApi`."""
        quoted = query.replace('"', " ")
        return {
            "action": "query",
            "format": "json",
            "formatversion": "2",
            "maxlag": str(_MAX_LAG_S),
            "generator": "search",
            "gsrsearch": f'"{quoted}" filetype:bitmap',
            "gsrnamespace": "6",
            "gsrlimit": str(min(wanted, _MOST_RESULTS)),
            "prop": "imageinfo",
            "iiprop": "url|extmetadata",
            "iiurlwidth": str(_THUMBNAIL_PX),
            "iiextmetadatafilter": _FACTS,
            **continuation,
        }

    def read(self, content: Any, continuation: Continuation) -> Page:
        """See `SearchApi`."""
        if "error" in content:
            if content["error"].get("code") in ("maxlag", "ratelimited", "readonly"):
                raise ThrottledError(str(content["error"]["code"]))
            raise ValueError(f"error {content['error'].get('code')}")
        if "query" not in content and "batchcomplete" not in content:
            raise ValueError("neither results nor an end")
        pages = sorted(content.get("query", {}).get("pages", []), key=lambda page: int(page["index"]))
        following = content.get("continue")
        return Page(
            [_found(page) for page in pages if page.get("imageinfo")],
            {str(name): str(value) for name, value in following.items()} if following else None,
        )

    def token_request(self) -> tuple[str, Mapping[str, str]] | None:
        """See `SearchApi`."""
        return None


def _found(page: Any) -> Found:
    image = page["imageinfo"][0]
    facts = {name: _plain(entry["value"]) for name, entry in image.get("extmetadata", {}).items()}
    name = page["title"].removeprefix("File:").rpartition(".")[0].replace("_", " ")
    return Found(
        url=str(image.get("thumburl") or image["url"]),
        title=facts.get("ObjectName") or name,
        description=facts.get("ImageDescription", ""),
        page_url=str(image.get("descriptionurl", "")),
        license=facts.get("LicenseShortName", ""),
        license_url=facts.get("LicenseUrl", ""),
        creator=facts.get("Artist", ""),
        attribution=facts.get("Attribution", ""),
    )


def _plain(value: Any) -> str:
    """Return the text of a piece of HTML."""
    return " ".join(html.unescape(_TAG.sub(" ", str(value))).split())
