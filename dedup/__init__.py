"""What counts as the same image: fingerprints, duplicates, overlap with evaluation sets and its statistics.

The names below are imported when they are first used: `import dedup` costs nothing. docs/api.md describes them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dedup.errors import DedupError
    from dedup.in_memory import find_overlap, fingerprint, near_duplicates, overlap_statistics
    from dedup.overlap import EvalIndex

__all__ = ["DedupError", "EvalIndex", "find_overlap", "fingerprint", "near_duplicates", "overlap_statistics"]

_HOMES = {
    "DedupError": "dedup.errors:DedupError",
    "find_overlap": "dedup.in_memory:find_overlap",
    "fingerprint": "dedup.in_memory:fingerprint",
    "near_duplicates": "dedup.in_memory:near_duplicates",
    "overlap_statistics": "dedup.in_memory:overlap_statistics",
    "EvalIndex": "dedup.overlap:EvalIndex",
}

if not TYPE_CHECKING:  # a type checker would take every name for known

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, own_name = _HOMES[name].partition(":")
        return getattr(import_module(module), own_name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
