"""What a model in training scores: loss and retrieval on held-out pairs, zero-shot on `[[evals]]`; on all processes.

A pure function of the weights: the training's randomness and order do not notice it.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.config import Settings
from trainer.data import MAX_CHUNK, Batch, PairDataset, concatenated, to_model_input
from trainer.distributed import World
from trainer.errors import TrainerConfigError
from trainer.evaluation.models import Encoder, evaluation_transform
from trainer.evaluation.prompts import find_prompts, read_prompts
from trainer.evaluation.retrieval import DEPTHS, recalls
from trainer.evaluation.zero_shot import check_set, zero_shot
from trainer.inputs import Inputs
from trainer.loss import whole_loss
from trainer.order import SamplePositions, hash64
from trainer.parallel import encode_alone, train_mode
from trainer.precision import pick_precision
from trainer.step import Stepper
from trainer.tokenizer import tokenize

_CHOICE_STREAM = 9  # the other modules use 0 to 8
_THREADS = 4


class Validation:
    """The held-out pairs and the evaluation sets of a run. Every process calls every method, after the same step.

    Raises:
        TrainerConfigError: `train.best` is no score.
    """

    def __init__(self, settings: Settings, inputs: Inputs, world: World) -> None:
        self._settings, self._inputs, self._world = settings, inputs, world
        self._published = read_prompts(Path(settings.evaluate.prompts)) if settings.evaluate.prompts else {}
        self._positions = _choice(inputs, settings.train.validation_samples, settings.seed)
        self._check_best()

    def _check_best(self) -> None:
        pairs = ["loss", *(f"{side}_recall@{k}" for side in ("text", "image") for k in DEPTHS)]
        names = [*(pairs if len(self._positions) else ()), *(source.name for source in self._settings.evals)]
        best = self._settings.train.best
        if best is not None and best not in names:
            raise TrainerConfigError(f"train.best = {best!r} is not a score: choose one of {', '.join(names)}")

    def check_sets(self) -> None:
        """Fail before the first step where the first evaluation would.

        Raises:
            TrainerError: an evaluation set cannot be scored.
        """

        def check() -> None:
            for source in self._settings.evals:
                check_set(source, find_prompts(source.name, self._published))

        self._world.in_first(check)

    def scores(self, stepper: Stepper) -> dict[str, float]:
        """Return the metrics by name: `loss`, `text_recall@1` (image to text) ..., and each set's by the set's name.

        Raises:
            TrainerError: held-out pairs or an evaluation set cannot be read.
        """
        stepper.core.eval()
        try:
            with torch.no_grad():
                return self._pairs(stepper) | self._sets(stepper)
        finally:
            train_mode(stepper.core, self._settings.train.lock)

    def _pairs(self, stepper: Stepper) -> dict[str, float]:
        count = len(self._positions)
        if not count:
            return {}
        config, world = self._settings.train, self._world
        share = -(-count // world.size)
        own = self._positions.take(np.arange(world.rank * share, (world.rank + 1) * share) % count)  # equal parts
        images, texts = [], []
        for batch in self._batches(own, config.micro_batch or MAX_CHUNK):
            pixels = to_model_input(batch.images, channels_last=config.channels_last)
            with stepper.autocast():
                image, text, *scalars = stepper.model(pixels, batch.tokens)
            images.append(image.float().cpu())
            texts.append(text.float().cpu())
        gathered = world.gather((torch.cat(images), torch.cat(texts)))
        image, text = (torch.cat(side)[:count] for side in zip(*gathered, strict=True))
        scale, bias = scalars[0].float(), scalars[1].float() if len(scalars) > 1 else None
        device, size = world.device, min(config.batch, count)

        def score() -> dict[str, float]:
            parts = [slice(start, start + size) for start in range(0, count - size + 1, size)]
            losses = [whole_loss(image[p].to(device), text[p].to(device), scale, bias, config.objective) for p in parts]
            to_text, to_image = recalls(image, text, np.arange(count))
            return (
                {"loss": float(np.mean(losses))}
                | {f"text_recall@{k}": value for k, value in to_text.items()}
                | {f"image_recall@{k}": value for k, value in to_image.items()}
            )

        return world.from_first(score)

    def _batches(self, positions: SamplePositions, size: int) -> Iterator[Batch]:
        """Read pairs in threads: decoding does not hold Python's lock."""
        pairs = PairDataset(self._inputs.held_out, self._inputs.held_out_view)
        parts = [positions.take(np.arange(s, min(s + size, len(positions)))) for s in range(0, len(positions), size)]
        with ThreadPoolExecutor(_THREADS) as threads:
            for batch in threads.map(pairs.batch, parts):
                yield concatenated([batch], self._world.device, pairs.image_size)

    def _sets(self, stepper: Stepper) -> dict[str, float]:
        encoder = _SharedEncoder(
            self._settings.train.model,
            stepper.core,
            evaluation_transform(self._inputs.preprocessing.image_size),
            lambda texts: tokenize(texts, self._inputs.preprocessing.context_length),
            self._world.device,
            pick_precision(self._settings.train.precision, self._world.device),
            self._settings.evaluate.batch,
            self._settings.evaluate.workers,
            self._world,
        )
        return {
            source.name: zero_shot(encoder, source, find_prompts(source.name, self._published)).value
            for source in self._settings.evals
        }


def _choice(inputs: Inputs, most: int, seed: int) -> SamplePositions:
    """Return the same held-out samples each time: all, or `most` of them drawn by seed."""
    counts = inputs.held_out.counts
    shard = np.repeat(np.arange(len(counts)), counts)
    index = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
    draws = hash64(seed, _CHOICE_STREAM, np.arange(len(shard), dtype=np.uint64))
    rows = np.argsort(draws, kind="stable")[:most] if len(shard) else np.empty(0, np.int64)
    return SamplePositions(np.zeros(len(rows), np.int64), shard[rows].astype(np.int64), index[rows].astype(np.int64))


@dataclass(frozen=True)
class _SharedEncoder(Encoder):
    """An encoder in all processes: each encodes a part of every batch, and all get the whole result.

    Every process calls the model equally often, as sharded weights need it.
    """

    world: World

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Return L2-normalised features, (n, D) float32, on the CPU."""
        share = -(-len(texts) // self.world.size)
        padded = texts + texts[:1] * (share * self.world.size - len(texts))
        own = padded[self.world.rank * share : (self.world.rank + 1) * share]
        return torch.cat(self.world.gather(_texts(self, own)))[: len(texts)]

    @torch.no_grad()
    def encode_images(self, images: Iterable[bytes]) -> Iterator[tuple[Tensor, list[bool]]]:
        """Yield batches as `Encoder` does."""
        waiting, world = iter(images), self.world
        with ThreadPoolExecutor(max(1, self.workers)) as threads:
            while block := list(islice(waiting, self.batch * world.size)):
                pixels = list(threads.map(self._pixels, block[world.rank * self.batch :][: self.batch]))
                gathered = world.gather((self._features(pixels), [image is not None for image in pixels]))
                features = torch.cat([part for part, _ in gathered])
                yield self._finite(features), [flag for _, flags in gathered for flag in flags]

    def _features(self, pixels: list[Tensor | None]) -> Tensor:
        readable = [image for image in pixels if image is not None]
        size = self.model.visual.image_size
        edges = size if isinstance(size, tuple) else (size, size)
        stack = torch.stack(readable) if readable else torch.zeros(1, 3, *edges)
        with self.amp():
            features: Tensor = encode_alone(self.model, "image", stack.to(self.device))
        return features[: len(readable)].float().cpu()


def _texts(encoder: _SharedEncoder, texts: list[str]) -> Tensor:
    """Encode this process's texts."""
    parts = []
    for start in range(0, len(texts), encoder.batch):
        tokens = encoder.tokenize(texts[start : start + encoder.batch]).to(encoder.device)
        with encoder.amp():
            parts.append(encode_alone(encoder.model, "text", tokens))
    return torch.nn.functional.normalize(encoder._finite(torch.cat(parts).float().cpu()), dim=-1)
