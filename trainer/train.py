"""The run: set up, step, log, save, stop. `python -m trainer -c wit.toml`, or `torchrun ... -m trainer -c wit.toml`."""

import logging
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trainer import checkpoint
from trainer.config import Settings, TrainConfig
from trainer.data import Batch, PairDataset, Preprocessing, RankSampler, load_steps, to_model_input
from trainer.distributed import World, open_world
from trainer.errors import PeerError, TrainerConfigError, TrainerError, one_line
from trainer.export import export_model
from trainer.init_weights import load_initial
from trainer.model import build_model
from trainer.online_balance import BalancedOrder, keep_probabilities
from trainer.optimizer import build_optimizer
from trainer.order import SampleOrder, hash64
from trainer.output_lock import output_lock
from trainer.parallel import is_sharded, wrap
from trainer.precision import autocast, pick_precision
from trainer.progress import RunProgress, Stopwatch
from trainer.schedule import learning_rate
from trainer.shards import ShardCache, find_shards
from trainer.step import Stepper

log = logging.getLogger(__name__)
STABILITY_ADVICE = 'try train.precision = "bf16" or "fp32", or a lower train.learning_rate'
DELETE_ADVICE = "delete it to resume from the previous one"
_NOISE_STREAM = 5  # order.py, data.py and online_balance.py use 0 to 4
StepHook = Callable[[int, Batch], None]


def train(settings: Settings, on_step: StepHook | None = None) -> Path | None:
    """Train with these settings, from the newest checkpoint of the output folder if there is one.

    Returns the folder of the exported model, or None when a signal stopped the run (its checkpoint is written).
    `on_step` is called in every process before each step, with the step's number and its part of the batch.

    Raises:
        TrainerError: the run cannot start or continue.
    """
    if settings.train.threads is not None:
        torch.set_num_threads(settings.train.threads)
    try:
        with open_world(settings.train.device) as world, _claimed_by_first(settings.output, world):
            return _Run(settings, world).go(on_step)
    except torch.OutOfMemoryError as error:
        micro_batch = settings.train.micro_batch or "unset"
        raise TrainerError(
            f"{one_line(error).rstrip('.')}: set or lower train.micro_batch (now {micro_batch}), set "
            "train.gradient_checkpointing = true, and run again to resume from the last checkpoint; a smaller "
            f"train.batch (now {settings.train.batch}) needs a new run"
        ) from error
    except OSError as error:  # TensorBoard or W&B cannot write, or the machine has run out of a resource
        raise TrainerError(f"the run stopped: {error}; run again to resume from the last checkpoint") from error


@contextmanager
def _claimed_by_first(output: Path, world: World) -> Iterator[None]:
    """Hold the output folder in the first process; fail in all of them if it cannot."""
    with ExitStack() as held:
        world.in_first(lambda: held.enter_context(output_lock(output)))
        yield


class _Run:
    """One process's part of a run."""

    def __init__(self, settings: Settings, world: World) -> None:
        config = settings.train
        self.settings, self.config, self.world = settings, config, world
        self.checkpoints = settings.output / "checkpoints"
        cache = ShardCache(settings.cache, int(config.cache_gib * 2**30))
        self.shards = find_shards(settings.shard_globs, cache)
        self.order = self._order()
        _check_batch(config, world, self.order.samples)
        self.total_steps = config.steps or int(config.epochs * self.order.samples / config.batch)
        if not self.total_steps:
            raise TrainerConfigError(
                f"train.epochs = {config.epochs} of {self.order.samples} samples is less than one step of "
                f"train.batch = {config.batch}: raise train.epochs, or lower train.batch"
            )
        self.done_steps = self.saved_steps = self.unlogged_steps = 0
        self.loss_sum = torch.zeros((), device=world.device)
        self.broken: Counter[str] = Counter()
        self.stepper = self._stepper()
        self._resume()

    def _order(self) -> SampleOrder | BalancedOrder:
        shape = {"seed": self.settings.seed, "lanes": self.config.lanes, "window": self.config.window}
        if self.config.balance_cap is None:
            return SampleOrder(self.shards.counts, **shape)
        probabilities = keep_probabilities(self.shards, self.config.balance_cap)
        return BalancedOrder(self.shards.counts, probabilities, **shape)

    def _stepper(self) -> Stepper:
        config, device = self.config, self.world.device
        torch.manual_seed(self.settings.seed)
        try:
            model = build_model(
                config.architecture, text=config.text, objective=config.objective,
                flat_logit_scale=is_sharded(config, self.world),
            )  # fmt: skip
        except Exception as error:  # open_clip does not check the table; it fails where it uses a value
            raise TrainerConfigError(f"cannot build train.architecture: {one_line(error)}") from error
        if config.initial is not None and not checkpoint.list_checkpoints(self.checkpoints):
            load_initial(model, config.initial)
        precision = pick_precision(config.precision, device)
        wrapped = wrap(model, config, self.world)
        optimizer = build_optimizer(
            model,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            beta1=config.beta1,
            beta2=config.beta2,
            eps=config.eps,
        )
        scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        return Stepper(model, wrapped, optimizer, scaler, config, lambda: autocast(device, precision))

    @property
    def _identity(self) -> dict[str, Any]:
        """The settings that must be equal for a checkpoint to continue this run."""
        config = self.config
        return {
            "train.model": config.model,
            "train.text": config.text,
            "train.architecture": config.architecture,
            "train.objective": config.objective,
            "seed": self.settings.seed,
            "train.batch": config.batch,
            "train.lanes": config.lanes,
            "train.window": config.window,
            "train.balance_cap": config.balance_cap,
            "shards": self.shards.fingerprint,
        }

    def _newest_readable(self) -> tuple[Path | None, dict[str, Any]]:
        """Return the newest checkpoint that every process can read, and its content; None where there is none at all.

        Raises:
            TrainerError: there are checkpoints, but none can be read.
        """
        failure = None
        for path in reversed(checkpoint.list_checkpoints(self.checkpoints)):
            problem = None
            try:
                state = checkpoint.load(path)
            except TrainerError as error:
                problem = error
            if not any(self.world.any(problem is not None)):
                return path, state
            failure = failure or problem or PeerError()
            if self.world.is_first:
                log.warning("%s; trying the previous one", problem or path)
        if failure is not None:
            raise TrainerError(f"{failure}; no older one can be read: delete {self.checkpoints} to start again")
        return None, {}

    def _resume(self) -> None:
        path, state = self._newest_readable()
        if path is None:
            return
        for key, value in self._identity.items():
            if state["identity"].get(key) != value:
                detail = "the shards differ" if key == "shards" else f"{key} = {state['identity'].get(key)!r}"
                raise TrainerError(
                    f"{path} belongs to another run ({detail}): set train.output to a new folder, or restore the value"
                )
        try:
            checkpoint.restore(self.stepper.core, self.stepper.optimizer, state)
            if state["scaler"]:  # only fp16 runs save one; a run that switches to fp16 starts with a new scale
                self.stepper.scaler.load_state_dict(state["scaler"])
        except Exception as error:  # torch raises any error of its loaders
            reason = " ".join(str(error).split())
            raise TrainerError(f"checkpoint {path} does not fit the model: {reason}; {DELETE_ADVICE}") from error
        self.done_steps = self.saved_steps = state["step"]
        self.broken = Counter(state["broken"]) if self.world.is_first else Counter()
        if self.world.is_first:
            log.info("resuming from %s", path)

    def go(self, on_step: StepHook | None) -> Path | None:
        """Run the remaining steps; return the exported model's folder unless a signal came first."""
        sampler = RankSampler(
            self.order, self.config.batch, self.config.lanes, self.done_steps, self.total_steps,
            self.world.rank, self.world.size,
        )  # fmt: skip
        vision, text = self.config.architecture["vision_cfg"], self.config.architecture["text_cfg"]
        preprocessing = Preprocessing(
            vision["image_size"],
            text["context_length"],
            self.settings.seed,
            self.config.crop_scale,
            self.config.captions,
        )
        steps = load_steps(
            PairDataset(self.shards, preprocessing), sampler,
            workers=self.config.workers, prefetch=self.config.prefetch, device=self.world.device,
        )  # fmt: skip
        self._describe()
        progress = RunProgress(
            self.config, self.settings.output, start=self.done_steps, total=self.total_steps, shown=self.world.is_first
        )
        self.stepper.model.train()
        with _stop_signal() as stop_requested, closing(progress), closing(steps):
            stopped = self._loop(steps, progress, stop_requested, on_step)
            return None if stopped else self._finish()

    def _loop(
        self,
        steps: Generator[Batch, None, None],
        progress: RunProgress,
        stop_requested: Callable[[], bool],
        on_step: StepHook | None,
    ) -> bool:
        """Step until the end or a signal; return whether a signal stopped it. Finished steps are saved.

        Raises:
            TrainerError: the run cannot continue; if only the next data are missing, the finished steps are saved.
        """
        config, watch = self.config, Stopwatch()
        while True:
            batch, failure = _next_of(steps)
            watch.data_arrived()
            is_stopping, is_failing = self.world.any(stop_requested(), failure is not None)
            if is_stopping or is_failing or batch is None:
                break
            if on_step is not None:
                on_step(self.done_steps, batch)
            self.broken.update(batch.broken)
            images = to_model_input(batch.images, channels_last=config.channels_last)
            self.loss_sum += self.stepper.step(
                images, batch.tokens, learning_rate=self._rate(self.done_steps), seed=self._noise_seed()
            )
            self.done_steps, self.unlogged_steps = self.done_steps + 1, self.unlogged_steps + 1
            is_saving = self.done_steps % config.checkpoint_steps == 0
            if is_saving or self.done_steps % config.log_steps == 0:
                self._report(progress, watch)
            if is_saving:
                self._save()
            watch.step_ended()
        steps.close()  # the workers are not needed while saving
        if self.unlogged_steps:
            self._report(progress, watch)
        self._save()
        if is_failing:
            raise failure or PeerError()
        return self.done_steps < self.total_steps

    def _rate(self, step: int) -> float:
        config = self.config
        return learning_rate(
            step, peak=config.learning_rate, warmup_steps=config.warmup_steps, total_steps=self.total_steps
        )

    def _noise_seed(self) -> int:
        """Return this process's seed for the model's randomness, such as dropout, in the next step."""
        return int(hash64(self.settings.seed, _NOISE_STREAM, self.done_steps, self.world.rank)[0])

    def _report(self, progress: RunProgress, watch: Stopwatch) -> None:
        """Log the metrics of the steps since the last report."""
        steps = self.unlogged_steps
        metrics = self._metrics(self.loss_sum / steps, steps) | watch.lap(steps * self.config.batch)
        progress.update(self.done_steps, metrics | {"learning_rate": self._rate(self.done_steps - 1)})
        self.loss_sum, self.unlogged_steps = torch.zeros_like(self.loss_sum), 0

    def _metrics(self, mean_loss: torch.Tensor, steps: int) -> dict[str, float]:
        """Return the metrics of the last steps.

        Raises:
            TrainerError: the loss is NaN or infinite, or too many samples are unusable.
        """
        loss = self.world.mean(mean_loss)
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise TrainerError(
                f"the loss is {loss} between steps {self.done_steps - steps + 1} and {self.done_steps}; no checkpoint "
                f"of these steps is written: {STABILITY_ADVICE}"
            )
        broken = self.world.sum_counts(self.broken)
        seen = self.done_steps * self.config.batch
        if broken.total() > self.config.max_broken_share * seen:
            reasons = ", ".join(f"{count} {reason}" for reason, count in broken.most_common())
            raise TrainerError(
                f"{broken.total()} of {seen} samples are unusable ({reasons}), more than train.max_broken_share = "
                f"{self.config.max_broken_share}: write the shards again, or raise the limit"
            )
        scale = self.stepper.core.logit_scale.detach()
        full_scale = scale.full_tensor() if hasattr(scale, "full_tensor") else scale
        metrics = {"loss": loss, "logit_scale": float(full_scale.exp()), "broken": float(broken.total())}
        if self.world.device.type == "cuda":
            metrics["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return metrics

    def _save(self) -> None:
        """Write a checkpoint of the finished steps, unless there is one.

        Raises:
            TrainerError: a weight is NaN or infinite, or the file cannot be written.
        """
        if self.saved_steps == self.done_steps:
            return
        self._check_finite()
        state = checkpoint.capture(self.stepper.core, self.stepper.optimizer)
        broken = self.world.sum_counts(self.broken)
        content = {
            **state,
            "step": self.done_steps,
            "samples_seen": self.done_steps * self.config.batch,
            "identity": self._identity,
            "broken": dict(broken),
            "scaler": self.stepper.scaler.state_dict(),
        }
        path = checkpoint.checkpoint_path(self.checkpoints, self.done_steps)
        self.world.in_first(lambda: checkpoint.save(path, content, keep=self.config.keep_checkpoints))
        self.saved_steps = self.done_steps

    def _check_finite(self) -> None:
        moments = [value for state in self.stepper.optimizer.state.values() for value in state.values()]
        is_finite = checkpoint.is_finite([*self.stepper.core.state_dict().values(), *moments])
        if any(self.world.any(not is_finite)):
            raise TrainerError(
                f"the weights are not finite after step {self.done_steps}; no checkpoint of them is written: "
                f"{STABILITY_ADVICE}"
            )

    def _finish(self) -> Path:
        saved, target = checkpoint.checkpoint_path(self.checkpoints, self.done_steps), self.settings.output / "model"
        self.world.in_first(lambda: export_model(saved, target))
        return target

    def _describe(self) -> None:
        if self.world.is_first:
            log.info(
                "%s on %d x %s: %d samples in %d shards, %d steps of %d",
                self.config.model, self.world.size, self.world.device.type, self.order.samples,
                len(self.shards.shards), self.total_steps, self.config.batch,
            )  # fmt: skip


def _next_of(steps: Generator[Batch, None, None]) -> tuple[Batch | None, TrainerError | None]:
    """Return the next step's samples, or the error that prevents it; (None, None) at the end."""
    try:
        return next(steps, None), None
    except TrainerError as error:
        return None, error
    except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
        # A dead worker shows as such, or as a failure to receive the tensors that it has announced.
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        reason = one_line(error)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise in the middle of a step
    # The loader's destructor ends its processes once no traceback refers to it, which is now.
    return None, TrainerError(
        f"a loader process died ({reason.rstrip('. ')}), often for lack of memory or of /dev/shm: lower train.workers "
        "or train.prefetch, and run again to resume"
    )


def _check_batch(config: TrainConfig, world: World, samples: int) -> None:
    if samples < config.batch:
        raise TrainerConfigError(
            f"train.batch = {config.batch} is more than the {samples} samples of the shards, so a batch would contain "
            f"pairs twice, as their own negatives: set train.batch to {samples} or less"
        )
    if config.batch % world.size:
        raise TrainerConfigError(
            f"train.batch = {config.batch} is not divisible by the number of processes, {world.size}: "
            "change train.batch or --nproc-per-node"
        )
    local_batch = config.batch // world.size
    if config.micro_batch is not None and local_batch % config.micro_batch:
        raise TrainerConfigError(
            f"train.micro_batch = {config.micro_batch} does not divide the {local_batch} samples per process "
            f"(train.batch = {config.batch} / {world.size} processes): set it to a divisor"
        )


@contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM (Slurm's warning) and Ctrl-C into a request to save and stop; a second Ctrl-C interrupts at once."""
    requests: list[int] = []

    def request_stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and requests:
            raise KeyboardInterrupt
        requests.append(number)

    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
