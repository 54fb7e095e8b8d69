"""The queries: the allowlist, the normal form of texts, the matcher.

The names below are imported when they are first used: `import queries` costs nothing. docs/api.md describes them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from queries.allowlist import Allowlist, import_allowlist
    from queries.errors import InputError
    from queries.match import QueryMatcher
    from queries.normal_form import normalize

__all__ = ["Allowlist", "InputError", "QueryMatcher", "import_allowlist", "normalize"]

_HOMES = {
    "Allowlist": "queries.allowlist:Allowlist",
    "import_allowlist": "queries.allowlist:import_allowlist",
    "InputError": "queries.errors:InputError",
    "QueryMatcher": "queries.match:QueryMatcher",
    "normalize": "queries.normal_form:normalize",
}

if not TYPE_CHECKING:  # a type checker would take every name for known

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, own_name = _HOMES[name].partition(":")
        return getattr(import_module(module), own_name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
