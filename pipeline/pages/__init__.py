"""Pages for people, each one file that needs nothing but itself: styles, charts and pictures are inside.

Their Content-Security-Policy forbids every request and every script. What comes from strangers (captions, URLs, names
of files) is escaped, and becomes a link only if it is an http or https address.
"""

import base64
import hashlib
from functools import cache
from importlib import resources
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_SHOWN_CHARS = 300


def render_page(template: str, **values: object) -> str:
    """Return the page of a template in templates/; equal values give equal pages."""
    style = resources.files("pipeline.pages").joinpath("templates", "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    page = _environment().get_template(template).render(style=Markup(style), policy=policy, **values)
    return page.lstrip()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda n: f"{n:,}",
        "percent": lambda part, whole: f"{part / whole:.1%}" if whole else "–",
        "link": web_address,
        "jpeg": lambda jpeg: f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}",
        "shorten": shorten,
        "words": lambda name: name.replace("_", " "),
    }
    return environment


def shorten(text: str) -> str:
    """Return a stranger's text on one line, without characters that cannot be seen, cut to a bearable length."""
    plain = "".join(c if c.isprintable() else " " for c in text[: 2 * _SHOWN_CHARS])
    return plain if len(plain) <= _SHOWN_CHARS else f"{plain[:_SHOWN_CHARS]}…"


def web_address(url: str) -> str | None:
    """Return a URL that is safe to link to, or None: only http and https, with a host."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.hostname else None
