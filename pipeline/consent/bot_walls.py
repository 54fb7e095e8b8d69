"""Responses that turn machines away or name a price: challenge pages and 402.

A wall can stand behind any status. It is told by the headers that the makers of walls add, or by what a small page of
HTML contains where an image should be.
"""

import re
from collections.abc import Mapping

PAYMENT_REQUIRED = 402

# Header -> what in it means a challenge; a header that pages without a challenge have too is not here.
_CHALLENGE_HEADERS = {
    "cf-mitigated": "challenge",  # Cloudflare
    "x-vercel-mitigated": "challenge",
    "x-amzn-waf-action": "c",  # captcha, challenge
    "x-datadome": "protected",
    "x-px-block": "",  # HUMAN, once PerimeterX
    "x-sucuri-block": "",
}
_MAX_PAGE_BYTES = 256 * 1024
_CHALLENGE_PAGE = re.compile(
    rb"/cdn-cgi/challenge-platform/|_cf_chl_opt|cf-browser-verification|Checking your browser before accessing|"
    rb"Just a moment\.\.\.</title>|_Incapsula_Resource|captcha-delivery\.com|px-captcha|sucuri_cloudproxy|"
    rb"awswafcookiedomainlist|AwsWafIntegration|ddos-guard/js-challenge|id=.anubis_|techaro\.lol|"
    rb"hcaptcha\.com/1/api\.js|google\.com/recaptcha/|challenges\.cloudflare\.com/turnstile|geetest|"
    rb"[Mm]aking sure you(?:'|&#39;)re not a bot|[Aa]re you a (?:robot|human)\?|"
    rb"[Vv]erify (?:that )?you are (?:a )?human"
)


def challenge_in_headers(headers: Mapping[str, str]) -> str | None:
    """Return the header line that says that this response is a challenge, or None."""
    for name, content in _CHALLENGE_HEADERS.items():
        value = headers.get(name)
        if value is not None and value.strip().lower().startswith(content):
            return f"{name}: {value}"
    return None


def challenge_in_page(body: bytes) -> str | None:
    """Return what in the body of a response shows that it is a challenge page and no image, or None."""
    head = body[:1024].lstrip().lower()
    if len(body) > _MAX_PAGE_BYTES or not (head.startswith(b"<") and (b"<html" in head or b"<!doctype html" in head)):
        return None
    found = _CHALLENGE_PAGE.search(body)
    return found[0].decode("ascii", "replace") if found is not None else None


def price_in_headers(headers: Mapping[str, str]) -> str:
    """Return the price that a 402 response names (Cloudflare's pay per crawl), as words for a message."""
    price = headers.get("crawler-price")
    return f"payment required: {price}" if price else "payment required"
