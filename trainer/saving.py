"""When checkpoints are written and which are kept: the newest, those of fixed steps and epochs, and the best."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer import checkpoint, sharded
from trainer.config import Settings
from trainer.distributed import World
from trainer.errors import PeerError, TrainerError
from trainer.step import Stepper
from trainer.store import Store

log = logging.getLogger(__name__)
STABILITY_ADVICE = 'try train.precision = "bf16" or "fp32", or a lower train.learning_rate'
DELETE_ADVICE = "delete it to resume from the previous one"


class Saver:
    """The checkpoints of a run. Every process calls every method."""

    def __init__(
        self,
        settings: Settings,
        world: World,
        stepper: Stepper,
        identity: dict[str, Any],
        epoch_samples: int,
        store: Store | None = None,
    ) -> None:
        self.config, self.world, self.stepper = settings.train, world, stepper
        self.folder = settings.output / "checkpoints"
        self.saved_step = 0
        self._identity, self._epoch_samples, self._store = identity, epoch_samples, store
        self._writing = sharded.Writing(world) if self.config.checkpoint_format == "sharded" else None

    def is_due(self, step: int) -> bool:
        """Return whether the state after a step is saved whatever its scores are."""
        every = self.config.keep_every_steps
        return step % self.config.checkpoint_steps == 0 or bool(every and step % every == 0) or self._ends_epoch(step)

    def _ends_epoch(self, step: int) -> bool:
        """Return whether an epoch of `train.keep_epochs` ends in a step."""
        batch, epoch = self.config.batch, self._epoch_samples
        return self.config.keep_epochs and step > 0 and step * batch // epoch > (step - 1) * batch // epoch

    def save(self, step: int, broken: Counter[str]) -> None:
        """Write a checkpoint of the finished steps, unless there is one.

        Raises:
            TrainerError: a weight is NaN or infinite, or the file cannot be written.
        """
        if self.saved_step == step:
            return
        self._check_finite(step)
        self.wait()
        total = self.world.sum_counts(broken)
        about = {
            "step": step,
            "samples_seen": step * self.config.batch,
            "identity": self._identity,
            "broken": dict(total),
            "scaler": self.stepper.scaler.state_dict(),
        }
        written: Callable[[], None] | None = None
        if self._writing is not None:
            path = sharded.checkpoint_path(self.folder, step)
            written = self._writing.start(path, self.stepper, about, after=lambda: self._prune(step))
        else:
            content = checkpoint.capture(self.stepper.core, self.stepper.optimizer) | about
            if self.stepper.average is not None:
                content["ema"] = checkpoint.with_scalars_of_shape(self.stepper.average.state(), torch.Size())
            path = checkpoint.checkpoint_path(self.folder, step)

            def write() -> None:
                checkpoint.save(path, content)
                self._prune(step)

            self.world.in_first(write)
        if self._store is not None:
            self._store.start(path, written, lambda paths: self._stale(paths, step))
        self.saved_step = step

    def wait(self) -> None:
        """Wait until a checkpoint that is written or uploaded beside the steps is complete.

        Raises:
            TrainerError: it could not be written.
        """
        if self._writing is not None:
            self._writing.wait()
        if self._store is not None:
            self._store.wait()

    def _stale(self, paths: list[Path], newest: int) -> list[Path]:
        """Return the checkpoints, of `paths` by age, that no rule keeps."""
        every, best = self.config.keep_every_steps, self._best().get("step")
        return [
            path
            for path in paths[: -self.config.keep_checkpoints]
            if (step := checkpoint.step_of(path)) not in (best, newest)
            and not (every and step % every == 0)
            and not self._ends_epoch(step)
        ]

    def _prune(self, newest: int) -> None:
        """Delete the checkpoints that no rule keeps; those of a store are deleted when the newest one is there."""
        if self._store is not None:
            return
        for path in self._stale(checkpoint.list_checkpoints(self.folder), newest):
            try:
                checkpoint.delete(path)
            except OSError as error:
                raise TrainerError(f"cannot delete the old checkpoint {path}: {error.strerror}") from error

    def _best(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "best.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def note_scores(self, step: int, scores: dict[str, float], broken: Counter[str]) -> None:
        """Save, and remember as the best, a model that scores better than all before by the metric of `train.best`.

        Raises:
            TrainerError: the checkpoint cannot be written.
        """
        metric = self.config.best
        if metric is None:
            return
        is_better = [False]

        def compare() -> None:
            before, sign = self._best(), -1 if metric == "loss" else 1
            same = before.get("metric") == metric and before.get("step") != step
            is_better[0] = not same or sign * scores[metric] > sign * before["value"]

        self.world.in_first(compare)
        if not any(self.world.any(is_better[0])):
            return
        self.save(step, broken)
        self.wait()
        content = json.dumps({"step": step, "metric": metric, "value": scores[metric]}) + "\n"
        self.world.in_first(lambda: _replace(self.folder / "best.json", content))

    def resume(self) -> tuple[int, Counter[str]]:
        """Restore the newest readable checkpoint; return its step and counts, or 0 if there is none.

        Raises:
            TrainerError: it belongs to another run, or none can be read.
        """
        path, state = self._newest_readable()
        if path is None:
            return 0, Counter()
        for key, value in self._identity.items():
            if state["identity"].get(key, value) != value:  # absent: the version that wrote it did not know the key
                differs = key in ("shards", "annotations")  # hashes, which tell nobody anything
                detail = f"the {key} differ" if differs else _difference(key, state["identity"].get(key), value)
                raise TrainerError(
                    f"{path} belongs to another run ({detail}): set train.output to a new folder, or restore the value"
                )
        try:
            if path.is_dir():
                sharded.restore(path, self.stepper)
            else:
                checkpoint.restore(self.stepper.core, self.stepper.optimizer, state)
                if self.stepper.average is not None and "ema" in state:
                    self.stepper.average.load(state["ema"])
            if state["scaler"]:  # only fp16 runs save one; a run that switches to fp16 starts with a new scale
                self.stepper.scaler.load_state_dict(state["scaler"])
        except Exception as error:  # torch raises any error of its loaders
            reason = " ".join(str(error).split())
            raise TrainerError(f"checkpoint {path} does not fit the model: {reason}; {DELETE_ADVICE}") from error
        self.saved_step = state["step"]
        if self.world.is_first:
            log.info("resuming from %s", path)
        return state["step"], Counter(state["broken"]) if self.world.is_first else Counter()

    def _newest_readable(self) -> tuple[Path | None, dict[str, Any]]:
        """Return the newest checkpoint that every process can read, and its content; None where there is none at all.

        Raises:
            TrainerError: there are checkpoints, but none can be read.
        """
        failure = None
        for path in reversed(self.checkpoints()):
            problem = None
            try:
                if self._store is not None:
                    self._store.fetch(path.name)
                state = sharded.load_about(path) if path.is_dir() else checkpoint.load(path)
            except TrainerError as error:
                problem = error
            if not any(self.world.any(problem is not None)):
                return path, state
            failure = failure or problem or PeerError()
            if self.world.is_first:
                log.warning("%s; trying the previous one", problem or path)
        if failure is not None:
            raise TrainerError(f"{failure}; no older one can be read: delete {self.folder} to start again")
        return None, {}

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints of the run, oldest first; of those on a store only the one in use is here."""
        if self._store is not None:
            return [self.folder / name for name in self._store.checkpoints()]
        return checkpoint.list_checkpoints(self.folder)

    def _check_finite(self, step: int) -> None:
        moments = [value for state in self.stepper.optimizer.state.values() for value in state.values()]
        is_finite = checkpoint.is_finite([*self.stepper.core.state_dict().values(), *moments])
        if any(self.world.any(not is_finite)):
            raise TrainerError(
                f"the weights are not finite after step {step}; no checkpoint of them is written: {STABILITY_ADVICE}"
            )


def _difference(key: str, before: Any, now: Any) -> str:
    """Return the first key of a table whose value differs, and what it was."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = (name for name in {**before, **now} if before.get(name) != now.get(name))
        if (name := next(names, None)) is not None:
            return _difference(f"{key}.{name}", before.get(name), now.get(name))
    return f"{key} = {before!r}"


def _replace(path: Path, content: str) -> None:
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(content)
        os.replace(partial, path)
    except OSError as error:
        raise TrainerError(f"cannot write {path}: {error.strerror}; free space, and run again to resume") from error
