"""The run: set up, step, log, save, stop. `python -m trainer -c wit.toml`, or `torchrun ... -m trainer -c wit.toml`."""

import logging
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from trainer import checkpoint
from trainer.config import Settings, TrainConfig, open_clip_name
from trainer.cpus import default_workers
from trainer.data import Batch, PairDataset, RankSampler, load_steps, to_model_input
from trainer.distributed import World, open_world
from trainer.ema import Average
from trainer.errors import PeerError, TrainerConfigError, TrainerError, one_line
from trainer.export import export_model
from trainer.init_weights import load_initial
from trainer.inputs import open_inputs
from trainer.model import build_model
from trainer.optimizer import build_optimizer
from trainer.order import hash64
from trainer.output_lock import output_lock
from trainer.parallel import is_sharded, train_mode, wrap
from trainer.precision import autocast, pick_precision
from trainer.profiling import Profiler
from trainer.progress import RunProgress
from trainer.read_ahead import Progress, reading_ahead
from trainer.reporting import Reporter
from trainer.saving import Saver
from trainer.schedule import learning_rate
from trainer.step import Stepper
from trainer.stop_signal import stop_signal
from trainer.store import Store
from trainer.store_claim import StoreClaim
from trainer.validation import Validation

log = logging.getLogger(__name__)
_NOISE_STREAM = 5  # the other modules use 0 to 9
StepHook = Callable[[int, Batch], None]


def train(settings: Settings, on_step: StepHook | None = None, *, profile: bool = False) -> Path | None:
    """Train with these settings, from the newest checkpoint of the output folder if there is one.

    Returns the folder of the exported model, or None when a signal stopped the run (its checkpoint is written).
    `on_step` is called in every process before each step, with the step's number and its part of the batch. `profile`:
    write a trace of some steps to `<output>/profile`.

    Raises:
        TrainerError: the run cannot start or continue.
    """
    config = settings.train
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        claim = None if settings.output_url is None else StoreClaim(settings.output_url)
        with (
            open_world(config.device, config.collective_timeout_s) as world,
            _claimed_by_first(settings.output, claim, world),
        ):
            run = _Run(settings, world, claim, profile=profile)
            with run.store.kept() if run.store is not None else nullcontext():
                return run.go(on_step)
    except torch.OutOfMemoryError as error:
        micro_batch = config.micro_batch or "unset"
        raise TrainerError(
            f"{one_line(error).rstrip('.')}: set or lower train.micro_batch (now {micro_batch}), set "
            "train.gradient_checkpointing = true, and run again to resume from the last checkpoint; a smaller "
            f"train.batch (now {config.batch}) needs a new run"
        ) from error
    except OSError as error:  # TensorBoard or W&B cannot write, or the machine has run out of a resource
        raise TrainerError(f"the run stopped: {error}; run again to resume from the last checkpoint") from error


@contextmanager
def _claimed_by_first(output: Path, claim: StoreClaim | None, world: World) -> Iterator[None]:
    """Hold the output folder, on this machine and on a store, in the first process; fail in all if it cannot."""
    with ExitStack() as held:
        world.in_first(lambda: held.enter_context(output_lock(output)))
        if claim is not None:
            world.in_first(lambda: held.enter_context(claim.held()))
        yield


class _Run:
    """One process's part of a run."""

    def __init__(self, settings: Settings, world: World, claim: StoreClaim | None, *, profile: bool) -> None:
        config = settings.train
        self.settings, self.config, self.world, self.claim = settings, config, world, claim
        on_device = config.resize == "device" or (config.resize == "auto" and world.device.type == "cuda")
        self.inputs = open_inputs(settings, world, resizes_on_device=on_device)
        samples = self.inputs.order.samples
        _check_batch(config, world, samples)
        self.total_steps = config.steps or int(config.epochs * samples / config.batch)
        if not self.total_steps:
            raise TrainerConfigError(
                f"train.epochs = {config.epochs} of {samples} samples is less than one step of "
                f"train.batch = {config.batch}: raise train.epochs, or lower train.batch"
            )
        self.validation = Validation(settings, self.inputs, world) if config.evaluate_steps else None
        self.store = None if claim is None else Store(claim, settings.output, world)
        started = (
            self.store.checkpoints() if self.store else checkpoint.list_checkpoints(settings.output / "checkpoints")
        )
        self.stepper = _stepper(settings, world, is_new=not started)
        self.saver = Saver(settings, world, self.stepper, self._identity, samples, self.store)
        self.done_steps, broken = self.saver.resume()
        if self.validation is not None and not self.done_steps:
            self.validation.check_sets()
        self.evaluated_step = self.done_steps
        self.reporter = Reporter(config, world, self.stepper, broken, self.done_steps)
        self.profiler = Profiler(settings.output / "profile", self.done_steps) if profile and world.is_first else None

    @property
    def _identity(self) -> dict[str, Any]:
        """The settings that must be equal for a checkpoint to continue this run."""
        config = self.config
        same = (
            "model", "text", "architecture", "objective", "batch", "lanes", "window", "balance_cap", "balance_rule",
            "lock",
            "unlocked_layers", "image_rate", "text_rate", "layer_decay",
        )  # fmt: skip
        values = {f"train.{key}": getattr(config, key) for key in same}
        return {**values, "train.lock": list(config.lock), "seed": self.settings.seed, **self.inputs.identity}

    def go(self, on_step: StepHook | None) -> Path | None:
        """Run the remaining steps; return the exported model's folder unless a signal came first."""
        config, world = self.config, self.world
        sampler = RankSampler(
            self.inputs.order, config.batch, config.lanes, self.done_steps, self.total_steps, world.rank, world.size
        )
        workers = default_workers(world.local_size) if config.workers is None else config.workers
        self._describe(workers)
        progress = RunProgress(
            config, self.settings.output, start=self.done_steps, total=self.total_steps, shown=world.is_first
        )
        train_mode(self.stepper.core, config.lock)
        cache_bytes = config.cache_gib * 2**30 / world.local_size
        with (
            stop_signal() as stop_requested,
            closing(progress),
            reading_ahead(self.inputs.shards, sampler, cache_bytes) as ahead,
            closing(
                load_steps(
                    PairDataset(self.inputs.shards, self.inputs.preprocessing), sampler,
                    workers=workers, prefetch=config.prefetch, device=world.device,
                )
            ) as steps,
        ):  # fmt: skip
            stopped = self._loop(steps, progress, ahead, stop_requested, on_step)
            return None if stopped else self._finish()

    def _loop(
        self,
        steps: Generator[Batch, None, None],
        progress: RunProgress,
        ahead: Progress,
        stop_requested: Callable[[], bool],
        on_step: StepHook | None,
    ) -> bool:
        """Step until the end or a signal; return whether a signal stopped it. Finished steps are saved.

        Raises:
            TrainerError: the run cannot continue; if only the next data are missing, the finished steps are saved.
        """
        config, reporter = self.config, self.reporter
        while True:
            batch, failure = _next_of(steps)
            reporter.watch.data_arrived()
            is_lost = self.claim is not None and self.claim.is_lost  # saving then says so
            is_stopping, is_failing = self.world.any(stop_requested() or is_lost, failure is not None)
            if is_stopping or is_failing or batch is None:
                break
            if on_step is not None:
                on_step(self.done_steps, batch)
            self._step(batch)
            ahead.reached(self.done_steps)
            is_saving, is_evaluating = self.saver.is_due(self.done_steps), self._is_evaluating()
            if is_saving or is_evaluating or self.done_steps % config.log_steps == 0:
                reporter.report(progress, self.done_steps, self._rate(self.done_steps - 1))
            with reporter.watch.apart():
                if is_saving:
                    self.saver.save(self.done_steps, reporter.broken)
                if is_evaluating:
                    self._evaluate(progress)
            reporter.watch.step_ended()
        steps.close()  # the workers are not needed while saving
        if reporter.unlogged_steps:
            reporter.report(progress, self.done_steps, self._rate(self.done_steps - 1))
        self.saver.save(self.done_steps, reporter.broken)
        self.saver.wait()
        if is_failing:
            raise failure or PeerError()
        if self.done_steps == self.total_steps and self.evaluated_step < self.done_steps:
            self._evaluate(progress)
        return self.done_steps < self.total_steps

    def _step(self, batch: Batch) -> None:
        with self.profiler.step(self.done_steps) if self.profiler is not None else nullcontext():
            images = to_model_input(batch.images, channels_last=self.config.channels_last)
            loss = self.stepper.step(
                images, batch.tokens, learning_rate=self._rate(self.done_steps), seed=self._noise_seed()
            )
        self.reporter.note(loss, batch.broken)
        self.done_steps += 1

    def _is_evaluating(self) -> bool:
        every = self.config.evaluate_steps
        return every is not None and self.done_steps % every == 0

    def _evaluate(self, progress: RunProgress) -> None:
        if self.validation is None:
            return
        average = self.stepper.average
        with average.in_place() if average is not None else nullcontext():
            scores = self.validation.scores(self.stepper)
        self.evaluated_step = self.done_steps
        progress.evaluated(self.done_steps, scores)
        self.saver.note_scores(self.done_steps, scores, self.reporter.broken)

    def _rate(self, step: int) -> float:
        config = self.config
        return learning_rate(
            step, peak=config.learning_rate, warmup_steps=config.warmup_steps, total_steps=self.total_steps,
            schedule=config.schedule, cooldown_steps=config.cooldown_steps,
        )  # fmt: skip

    def _noise_seed(self) -> int:
        """Return this process's seed for the model's randomness, such as dropout, in the next step."""
        return int(hash64(self.settings.seed, _NOISE_STREAM, self.done_steps, self.world.rank)[0])

    def _finish(self) -> Path:
        saved = checkpoint.list_checkpoints(self.saver.folder)[-1]
        target = self.settings.output / "model"
        self.world.in_first(lambda: export_model(saved, target))
        if self.stepper.average is not None:
            self.world.in_first(lambda: export_model(saved, self.settings.output / "model-ema", averaged=True))
        return target

    def _describe(self, workers: int) -> None:
        if self.world.is_first:
            log.info(
                "%s on %d x %s: %d samples in %d shards (%d held out), %d steps of %d, %d loader processes each",
                self.config.model, self.world.size, self.world.device.type, self.inputs.order.samples,
                len(self.inputs.shards.shards), self.inputs.held_out.counts.sum(), self.total_steps, self.config.batch,
                workers,
            )  # fmt: skip
            if self.config.warmup_steps >= self.total_steps:
                log.warning(
                    "the learning rate does not reach its peak: train.warmup_steps = %d, and the run has %d steps",
                    self.config.warmup_steps, self.total_steps,
                )  # fmt: skip


def _stepper(settings: Settings, world: World, *, is_new: bool) -> Stepper:
    config, device = settings.train, world.device
    torch.manual_seed(settings.seed)
    try:
        model = build_model(
            config.architecture, text=config.text, objective=config.objective,
            flat_logit_scale=is_sharded(config, world),
        )  # fmt: skip
    except Exception as error:  # open_clip does not check the table; it fails where it uses a value
        raise TrainerConfigError(f"cannot build train.architecture: {one_line(error)}") from error
    if config.initial is not None and is_new:
        load_initial(model, config.initial, open_clip_name(config.model))
    try:
        if "image" in config.lock:
            model.lock_image_tower(unlocked_groups=config.unlocked_layers)
        if "text" in config.lock:
            model.lock_text_tower(unlocked_layers=config.unlocked_layers)
    except (AssertionError, NotImplementedError) as error:  # of a ResNet, open_clip locks the whole tower only
        raise TrainerConfigError(f"train.unlocked_layers = {config.unlocked_layers}: {one_line(error)}") from error
    precision = pick_precision(config.precision, device)
    wrapped = wrap(model, config, world)
    optimizer = build_optimizer(
        model,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        beta1=config.beta1,
        beta2=config.beta2,
        eps=config.eps,
        image_rate=config.image_rate,
        text_rate=config.text_rate,
        layer_decay=config.layer_decay,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    average = Average(model, config.ema) if config.ema is not None else None
    return Stepper(model, wrapped, optimizer, scaler, config, lambda: autocast(device, precision), average)


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
