"""`Content-Usage` (IETF AI Preferences), as a response header or a rule in robots.txt.

    Content-Usage: train-ai=n                 forbids training
    Content-Usage: train-ai=y, search=n       allows training, forbids search
    Content-Usage: train-ai=no                says nothing: only the tokens y and n do

The drafts limit `train-ai` to generative models. A published dataset is used to train models of any kind, so
`train-ai=n` refuses here.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType

import http_sf

from pipeline.consent.policy import TRAINING

ATTACH_DRAFT = "draft-ietf-aipref-attach-05 (2026-08-19)"
VOCABULARY_DRAFT = "draft-ietf-aipref-vocab-08 (2026-09-14)"

_USUAL_CHARS = 500

# Terms of the vocabulary, then of its earlier drafts, for which files were written that still exist.
_USES = {
    "train-ai": TRAINING,
    "search": "search",
    "train-genai": TRAINING,
    "genai": TRAINING,
    "ai": TRAINING,
    "tdm": TRAINING,
    "bots": TRAINING,
    "ai-use": "ai-input",
}


def read_content_usage(value: str) -> dict[str, bool]:
    """Return use -> is it allowed; empty if the value states nothing or is not a structured-field dictionary.

    Vocabulary section 6.4: unknown labels and all parameters are ignored, and of a repeated label the last counts.
    """
    return dict(_parse_again(value) if len(value) <= _USUAL_CHARS else _parse(value))


def _parse(value: str) -> Mapping[str, bool]:
    try:
        parsed = http_sf.parse(value.strip(" \t").encode("ascii"), tltype="dictionary")
    except (ValueError, RecursionError):
        return MappingProxyType({})
    assert isinstance(parsed, dict)
    preferences: dict[str, bool] = {}
    for label, use in _USES.items():
        item = parsed.get(label)
        token = item[0] if isinstance(item, tuple) else None
        if isinstance(token, http_sf.Token) and str(token) in ("y", "n"):
            preferences[use] = preferences.get(use, True) and str(token) == "y"
    return MappingProxyType(preferences)


_parse_again = lru_cache(1_024)(_parse)  # a host sends the same header with all its images


def read_content_usage_header(lines: Iterable[str]) -> dict[str, bool]:
    """Return the preferences in all header lines; they are one dictionary (RFC 9651 section 4.2)."""
    return read_content_usage(", ".join(lines))
