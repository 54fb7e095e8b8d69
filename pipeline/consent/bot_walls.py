"""Responses that block automated clients or require payment: challenge pages and 402.

A challenge can have any status. It is recognised by the headers that vendors of bot protection add, or by the content
of a small HTML page in place of an image.
"""

import re
from collections.abc import Mapping

PAYMENT_REQUIRED = 402

# Header -> pattern of its value in challenges; headers that other pages have too are not listed.
_CHALLENGE_HEADERS = {
    "cf-mitigated": "challenge",  # Cloudflare
    "x-vercel-mitigated": "challenge",
    "x-amzn-waf-action": "c",  # captcha, challenge
    "x-datadome": "protected",
    "x-px-block": "",  # HUMAN, formerly PerimeterX
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
    """Return the header line that marks this response as a challenge, or None."""
    for name, content in _CHALLENGE_HEADERS.items():
        value = headers.get(name)
        if value is not None and value.strip().lower().startswith(content):
            return f"{name}: {value}"
    return None


def challenge_in_page(body: bytes) -> str | None:
    """Return the text in the body of a response that shows that it is a challenge page and not an image, or None."""
    head = body[:1024].lstrip().lower()
    if len(body) > _MAX_PAGE_BYTES or not (head.startswith(b"<") and (b"<html" in head or b"<!doctype html" in head)):
        return None
    found = _CHALLENGE_PAGE.search(body)
    return found[0].decode("ascii", "replace") if found is not None else None


def price_in_headers(headers: Mapping[str, str]) -> str:
    """Return the price in a 402 response (Cloudflare's pay per crawl), as text for a message."""
    price = headers.get("crawler-price")
    return f"payment required: {price}" if price else "payment required"
