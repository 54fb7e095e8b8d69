"""Checkpoints of large models: a folder to which every process writes its shards, beside the steps that follow.

Written by `torch.distributed.checkpoint`; read by any number of processes, sharded or not. `about.pt` holds what is
not a tensor. `.metadata` is written last: a folder without it is not a checkpoint.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict, load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer import checkpoint
from trainer.distributed import World
from trainer.errors import TrainerError, one_line
from trainer.step import Stepper

_SHARDED = StateDictOptions(full_state_dict=False)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the name of the checkpoint after `step` steps."""
    return checkpoint.checkpoint_path(folder, step).with_suffix("")


class Writing:
    """At most one checkpoint that is being written beside the steps."""

    def __init__(self, world: World) -> None:
        self._world = world
        # Its threads must not share a group with the steps, whose operations would be mixed up with theirs.
        self._group: Any = dist.new_group(backend="gloo") if world.size > 1 else None
        self._written: Callable[[], None] | None = None
        self._after: Callable[[], None] = lambda: None

    def start(
        self, path: Path, stepper: Stepper, about: dict[str, Any], after: Callable[[], None]
    ) -> Callable[[], None]:
        """Copy the state, and write it while the caller goes on; `after` runs in the first process at the end.

        Returns a function that waits until this process has written its part, and the first one all.
        """
        self._world.in_first_of_machine(lambda: _make_folder(path))
        self._world.in_first(lambda: _write_about(path, about))
        state = _state(stepper)
        try:
            pending = async_save(state, checkpoint_id=path, process_group=self._group, no_dist=self._world.size == 1)
        except Exception as error:  # torch raises any error of its writers
            raise _not_written(path, error) from error
        self._written, self._after = partial(_until_written, pending, path), after
        return self._written

    def wait(self) -> None:
        """Wait until the checkpoint is complete.

        Raises:
            TrainerError: it could not be written.
        """
        if self._written is None:
            return
        written, self._written = self._written, None
        written()
        self._world.in_first(self._after)


def _until_written(pending: Any, path: Path) -> None:
    try:
        getattr(pending, "upload_completion", pending).result()
    except Exception as error:  # torch raises any error of its writers
        raise _not_written(path, error) from error


def _not_written(path: Path, error: Exception) -> TrainerError:
    return TrainerError(
        f"cannot write {path}: {one_line(error)}; free space or set train.output, and run again to resume from the "
        "previous checkpoint"
    )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(path, error) from error


def _write_about(path: Path, about: dict[str, Any]) -> None:
    try:
        (path / ".metadata").unlink(missing_ok=True)
        torch.save({"format": checkpoint.FORMAT, **about}, path / "about.pt")
    except (OSError, RuntimeError) as error:
        raise _not_written(path, error) from error


def _state(stepper: Stepper) -> dict[str, Any]:
    """Return the sharded weights and optimiser state; the scale and bias as whole scalars, as one process has them."""
    weights: dict[str, Any] = get_model_state_dict(stepper.core, options=_SHARDED)
    states: dict[str, Any] = get_optimizer_state_dict(stepper.core, stepper.optimizer, options=_SHARDED)
    for name in checkpoint.SCALARS & weights.keys():
        weights[name] = _scalar(weights[name])
        moments = states["state"].get(name, {})
        moments |= {key: value if key == "step" else _scalar(value) for key, value in moments.items()}
    state = {"model": weights, "optimizer": {"state": states["state"]}}
    if stepper.average is not None:
        averages = stepper.average.values
        state["ema"] = {n: _scalar(v) if n in checkpoint.SCALARS else v for n, v in averages.items()}
    return state


def _scalar(value: Any) -> Any:
    return (value.full_tensor() if isinstance(value, DTensor) else value).reshape(())


def restore(path: Path, stepper: Stepper) -> None:
    """Load a checkpoint into a model and optimiser of any sharding; the optimiser keeps its hyper-parameters."""
    state = _state(stepper)
    if "ema" in state and not _has_average(path):
        del state["ema"]
    load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
    shapes = {name: value for name, value in stepper.core.named_parameters() if name in checkpoint.SCALARS}
    groups = get_optimizer_state_dict(stepper.core, stepper.optimizer, options=_SHARDED)["param_groups"]
    for name, like in shapes.items():
        state["model"][name] = _like(state["model"][name], like)
        moments = state["optimizer"]["state"].get(name, {})
        moments |= {key: value if key == "step" else _like(value, like) for key, value in moments.items()}
    hyperparameters = [{k: v for k, v in group.items() if k != "params"} for group in stepper.optimizer.param_groups]
    set_model_state_dict(stepper.core, state["model"], options=_SHARDED)
    states = {"state": state["optimizer"]["state"], "param_groups": groups}
    set_optimizer_state_dict(stepper.core, stepper.optimizer, states, options=_SHARDED)
    for group, values in zip(stepper.optimizer.param_groups, hyperparameters, strict=True):
        group.update(values)
    if "ema" in state and stepper.average is not None:
        for name in shapes:  # the other values were loaded in place
            stepper.average.values[name].copy_(_like(state["ema"][name], shapes[name]))


def _has_average(path: Path) -> bool:
    metadata = FileSystemReader(path).read_metadata()
    return any(key.startswith("ema.") for key in metadata.state_dict_metadata)


def _like(value: Any, parameter: Any) -> Any:
    shaped = value.reshape(parameter.shape).to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(shaped, parameter.device_mesh, parameter.placements)
    return shaped


def load_about(path: Path) -> dict[str, Any]:
    """Read what a checkpoint says about itself.

    Raises:
        TrainerError: it is incomplete, or another program wrote it.
    """
    if not (path / ".metadata").exists():
        raise TrainerError(f"checkpoint {path} was not finished")
    try:
        about: dict[str, Any] = torch.load(path / "about.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises any error of its unpickler and zip reader
        raise TrainerError(f"cannot read checkpoint {path}: {one_line(error)}") from error
    if not isinstance(about, dict) or about.get("format") != checkpoint.FORMAT:
        raise TrainerError(f"{path} is not a checkpoint of this trainer")
    return about


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of either form: its weights, and what it says about itself.

    Raises:
        TrainerError: it cannot be read.
    """
    return load_whole(path) if path.is_dir() else checkpoint.load(path)


def load_whole(path: Path) -> dict[str, Any]:
    """Read a checkpoint as one process that needs no model: what a file would hold, but for the optimiser.

    Raises:
        TrainerError: it cannot be read.
    """
    about, state = load_about(path), dict[str, Any]()
    keys = {"model", "ema"} if _has_average(path) else {"model"}
    try:
        planner = _EmptyStateDictLoadPlanner(keys=keys)
        _load_state_dict(state, storage_reader=FileSystemReader(path), planner=planner, no_dist=True)
    except Exception as error:  # torch raises any error of its readers
        raise TrainerError(f"cannot read checkpoint {path}: {one_line(error)}") from error
    return about | state
