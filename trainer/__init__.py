"""Train and evaluate CLIP models on finished sets. Needs the extra `train`.

The names below are imported when they are first used: `import trainer` costs nothing. docs/api.md describes them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config import load_settings
    from trainer.errors import TrainerError
    from trainer.evaluation.models import open_encoder
    from trainer.evaluation.zero_shot import write_results, zero_shot
    from trainer.train import train as run_training

__all__ = ["TrainerError", "load_settings", "open_encoder", "run_training", "write_results", "zero_shot"]

_HOMES = {
    "load_settings": "trainer.config:load_settings",
    "TrainerError": "trainer.errors:TrainerError",
    "open_encoder": "trainer.evaluation.models:open_encoder",
    "write_results": "trainer.evaluation.zero_shot:write_results",
    "zero_shot": "trainer.evaluation.zero_shot:zero_shot",
    "run_training": "trainer.train:train",
}

if not TYPE_CHECKING:  # a type checker would take every name for known

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, own_name = _HOMES[name].partition(":")
        return getattr(import_module(module), own_name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
