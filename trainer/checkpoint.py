"""Checkpoints: everything a run needs to resume as if it had never stopped, in one file that is written atomically.

A file holds full, unsharded tensors by parameter name, so a run may resume with another number of processes, or
change between DDP and FSDP. `step` counts finished steps; the order of samples follows from it.
"""

import os
import re
import shutil
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from trainer.errors import TrainerError, one_line

FORMAT = "wit-train/1"
_PARTS = {"identity": dict, "model": dict, "optimizer": dict, "scaler": dict, "broken": dict, "step": int}
_NAME = re.compile(r"step-(\d{9})(?:\.pt)?")
SCALARS = {"logit_scale", "logit_bias"}  # of shape (1,) under FSDP
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the name of the checkpoint after `step` steps."""
    return folder / f"step-{step:09d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, files and complete folders of shards, oldest first."""
    found = (path for path in folder.glob("step-*") if is_checkpoint_name(path))
    return sorted(path for path in found if path.suffix or (path / ".metadata").exists())


def step_of(path: Path) -> int:
    """Return the number of finished steps that a checkpoint's name tells."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def delete(path: Path) -> None:
    """Delete a checkpoint: of a folder, first what makes it complete."""
    if path.is_dir():
        (path / ".metadata").unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink()


def is_checkpoint_name(path: Path) -> bool:
    """Return whether a file name has the form of this trainer's checkpoints."""
    return _NAME.fullmatch(path.name) is not None


def capture(model: CLIP, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the full weights and optimiser state, on the CPU. Every process must call this.

    FSDP gives the tensors to the first process only; the others get empty dictionaries.
    """
    weights: dict[str, Any] = get_model_state_dict(model, options=_WHOLE)
    states: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    scalar = torch.Size()
    return {
        "model": with_scalars_of_shape(weights, scalar),
        "optimizer": _with_moments_of_shape(states, scalar),
    }


def restore(model: CLIP, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load captured state into a model and optimiser of any sharding. Every process calls this with the same state.

    The optimiser keeps its current hyper-parameters, not those in the captured state.

    Raises:
        ValueError: the parameter names differ, or the optimiser's state is missing; torch raises other errors.
    """
    if state["model"].keys() != model.state_dict().keys() or not state["optimizer"].get("state"):
        raise ValueError("its parameter names do not match the model")
    hyperparameters = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    shape = model.logit_scale.shape
    weights, states = with_scalars_of_shape(state["model"], shape), _with_moments_of_shape(state["optimizer"], shape)
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, weights, options=options)
    set_optimizer_state_dict(model, optimizer, states, options=options)
    for group, values in zip(optimizer.param_groups, hyperparameters, strict=True):
        group.update(values)


def is_finite(tensors: Iterable[Any]) -> bool:
    """Return whether all values of these tensors, or of this process's shards of them, are finite."""
    shards = (t.to_local() if isinstance(t, DTensor) else t for t in tensors if torch.is_tensor(t))
    return all(bool(torch.isfinite(shard).all()) for shard in shards)


def with_scalars_of_shape(weights: dict[str, Any], shape: torch.Size) -> dict[str, Any]:
    """Return a model's weights with the logit scale and bias in this shape."""
    return {name: value.reshape(shape) if name in SCALARS else value for name, value in weights.items()}


def _with_moments_of_shape(optimizer: dict[str, Any], shape: torch.Size) -> dict[str, Any]:
    """Return an optimiser's state with the moments of the logit scale and bias in this shape."""
    moments = dict(optimizer.get("state", {}))
    for name in SCALARS & moments.keys():
        moments[name] = {k: v if k == "step" else v.reshape(shape) for k, v in moments[name].items()}
    return {**optimizer, "state": moments} if optimizer else {}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        TrainerError: it cannot be written; no partial file is left behind.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's writer hides the system's error behind a RuntimeError
        with suppress(OSError):
            partial.unlink()
        raise TrainerError(
            f"cannot write {path}: {one_line(error)}; free space or set train.output, and run again to resume from "
            "the previous checkpoint"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        TrainerError: it cannot be read, or another program wrote it.
    """
    _check_bytes(path)
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises any error of its unpickler and zip reader
        raise TrainerError(f"cannot read checkpoint {path}: {why_not_loaded(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TrainerError(f"{path} is not a checkpoint of this trainer")
    bad = [key for key, kind in _PARTS.items() if not isinstance(content.get(key), kind)]
    if bad or not content["identity"].keys() >= {"train.architecture", "train.objective"}:
        raise TrainerError(f"checkpoint {path}: {bad[0] if bad else 'identity'!r} is missing or incomplete")
    return content


def _check_bytes(path: Path) -> None:
    """Compare the content with the CRC-32 that torch stores for every tensor but does not verify.

    Raises:
        TrainerError: it is damaged, or cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise TrainerError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except Exception as error:  # zipfile raises any error where a header is damaged
        reason = str(error) or type(error).__name__
        raise TrainerError(f"cannot read checkpoint {path}: it is damaged or not a checkpoint ({reason})") from error
    if damaged is not None:
        raise TrainerError(f"cannot read checkpoint {path}: it is damaged (checksum of {damaged})")


def why_not_loaded(error: Exception) -> str:
    """Return torch's reason, without its advice to load what may run code."""
    if "weights_only" in str(error):
        return "it is not a file of tensors, numbers and text; others are not loaded, because they could run code"
    return one_line(error)
