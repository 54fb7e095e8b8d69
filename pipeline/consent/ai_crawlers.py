"""Other crawlers whose rules in robots.txt apply to us too: `fetch.also_obey`.

A site that disallows the known crawlers for training data means ours too, although it does not know our name.
"""

import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

PRESET = "ai-crawlers"
"""In `fetch.also_obey`: all tokens of ai_crawlers.toml."""


@cache
def preset_tokens() -> tuple[str, ...]:
    """Return the product tokens of the preset list."""
    text = files("pipeline.consent").joinpath("ai_crawlers.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)["tokens"])


def product_tokens(also_obey: Iterable[str]) -> frozenset[str]:
    """Return the product tokens of `fetch.also_obey`, in lower case, with the preset expanded."""
    named = [token for name in also_obey for token in (preset_tokens() if name == PRESET else (name,))]
    return frozenset(token.lower() for token in named)
