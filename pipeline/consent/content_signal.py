"""`Content-Signal` (Cloudflare's content signals, contentsignals.org, September 2025), in robots.txt or as a header.

    Content-Signal: search=yes, ai-train=no       forbids training
    Content-Signal: search=yes                    neither allows nor forbids training

The policy has no formal grammar, and people type it by hand: upper case, other separators, the IETF's names and short
values are accepted too.
"""

import re
from collections.abc import Iterable

from pipeline.consent.policy import TRAINING, combine

_USES = {
    "aitrain": TRAINING,
    "trainai": TRAINING,
    "aitraining": TRAINING,
    "aiinput": "ai-input",
    "search": "search",
}
_IS_ALLOWED = {
    "yes": True,
    "y": True,
    "true": True,
    "allow": True,
    "no": False,
    "n": False,
    "false": False,
    "disallow": False,
}
_SIGNAL = re.compile(r"([a-z][a-z _-]*?)\s*[=:]\s*[\"']?([a-z]+)")


def read_content_signal(value: str) -> dict[str, bool]:
    """Return use -> is it allowed; empty if nothing is stated. A repeated signal forbids if one of its values does."""
    found = []
    for name, answer in _SIGNAL.findall(value.lower()):
        use = _USES.get(re.sub("[ _-]", "", name))
        if use is not None and answer in _IS_ALLOWED:
            found.append({use: _IS_ALLOWED[answer]})
    return combine(found)


def read_content_signal_header(lines: Iterable[str]) -> dict[str, bool]:
    """Return the signals in all header lines."""
    return read_content_signal(", ".join(lines))
