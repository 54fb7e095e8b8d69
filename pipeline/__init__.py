"""From candidates to a dataset: config, build, balance, and access to a finished set.

The names below are imported when they are first used: `import pipeline` costs nothing. docs/api.md describes them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.build import run_build
    from pipeline.config import load_config
    from pipeline.errors import ConfigError, UserError
    from pipeline.shards.finished_set import open_set
    from pipeline.sources.read import read_source
    from pipeline.stages.balance.exact import balance

__all__ = ["ConfigError", "UserError", "balance", "load_config", "open_set", "read_source", "run_build"]

_HOMES = {
    "run_build": "pipeline.build:run_build",
    "load_config": "pipeline.config:load_config",
    "ConfigError": "pipeline.errors:ConfigError",
    "UserError": "pipeline.errors:UserError",
    "open_set": "pipeline.shards.finished_set:open_set",
    "read_source": "pipeline.sources.read:read_source",
    "balance": "pipeline.stages.balance.exact:balance",
}

if not TYPE_CHECKING:  # a type checker would take every name for known

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, own_name = _HOMES[name].partition(":")
        return getattr(import_module(module), own_name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
