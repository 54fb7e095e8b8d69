"""From sample positions to tensors: read, decode at reduced scale, crop, resize, tokenise, in worker processes.

All randomness of a sample (its crop, which of its captions) is a hash of (seed, epoch, sample), so a batch has the
same bytes in any worker of any rank. An unusable sample is counted by reason and replaced by the next usable one of
its shard.
"""

import signal
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dedup.decode import DecodeFailure, ImageDecodeError, decode_rgb
from trainer.annotations import annotations_of
from trainer.captions import CaptionRule
from trainer.errors import TrainerError
from trainer.order import Int64s, SamplePositions, rank_offsets, uniform
from trainer.resize import Crop, Packing, cut, resize, resized
from trainer.shards import ShardSet
from trainer.tokenizer import tokenize

Unusable = Literal["no_image", "no_caption"] | DecodeFailure
MAX_CHUNK = 256
"""Samples that one worker prepares at a time; a step's batch is concatenated from these."""
EDGE_STEP = 16
"""Of the squares in which crops are sent, in pixels."""
LAST_STEP_S = 60
"""How long a worker keeps running after SIGTERM, unless its training process ends it earlier."""
_CROP_STREAM, _CAPTION_STREAM = 2, 3  # order.py uses 0 and 1


class Batch(NamedTuple):
    """`n` pairs."""

    images: Tensor  # (n, size, size, 3) uint8; (n, P, P, 3) with `boxes`
    tokens: Tensor  # (n, context) int64
    shards: Tensor  # (n,) int64, with `indices` the samples' positions
    indices: Tensor
    broken: dict[str, int]  # by reason, positions of the stream whose sample is unusable
    boxes: Tensor | None = None  # crops that the device resizes, see `resize.packed`


@dataclass(frozen=True)
class Preprocessing:
    """How images are cropped and captions chosen and tokenised."""

    image_size: int
    context_length: int
    seed: int
    crop_scale: tuple[float, float] = (0.9, 1.0)  # fraction of the area of the largest square
    captions: tuple[CaptionRule, ...] = (CaptionRule(),)  # of each set
    first_shards: tuple[int, ...] = (0,)  # of each set
    resizes_on_device: bool = False
    is_centred: bool = False  # for evaluation: the largest square in the middle

    def rule(self, shard: int) -> CaptionRule:
        """Return the rule of a shard's set."""
        return self.captions[int(np.searchsorted(self.first_shards, shard, side="right")) - 1]


class Order(Protocol):
    """A stream of samples: `SampleOrder`, `BalancedOrder` or `MixedOrder`."""

    samples: int  # of an epoch

    def at(self, positions: Int64s) -> SamplePositions:
        """Return the epoch, shard and index of the samples at these positions."""


class PairDataset(Dataset[Batch | TrainerError]):
    """Turns sample positions into a batch; runs in loader workers."""

    def __init__(self, shards: ShardSet, preprocessing: Preprocessing) -> None:
        self._shards = shards
        self._preprocessing = preprocessing
        self.image_size = self._edge = preprocessing.image_size  # the latter as of the last batch
        tokenize([], preprocessing.context_length)  # loads the vocabulary once for all workers, which are forked

    def __getitem__(self, positions: SamplePositions) -> Batch | TrainerError:
        try:
            return self.batch(positions)
        except TrainerError as error:
            return error  # DataLoader would wrap it in a traceback; `load_steps` raises it

    def batch(self, positions: SamplePositions) -> Batch:
        """Return the samples at these positions.

        Raises:
            TrainerError: a shard cannot be read, or holds no usable sample; too little memory.
        """
        step = EDGE_STEP if self._preprocessing.resizes_on_device else 1
        packing = Packing(len(positions), self._edge, step=step, shared=get_worker_info() is not None)
        captions: list[str] = []
        index = positions.index.copy()
        draws = self._crop_draws(positions)
        broken: Counter[str] = Counter()
        for row in range(len(positions)):
            index[row], crop, caption = self._first_usable(positions, row, draws[:, row], broken)
            packing.add(crop)
            captions.append(caption)
        images, boxes = packing.tensors()
        self._edge = images.shape[1]
        return Batch(
            images, tokenize(captions, self._preprocessing.context_length), torch.from_numpy(positions.shard),
            torch.from_numpy(index), dict(broken), boxes if self._preprocessing.resizes_on_device else None,
        )  # fmt: skip

    def _crop_draws(self, positions: SamplePositions) -> NDArray[np.float64]:
        """Return three numbers in [0, 1) per sample: the size and offsets of its crop. (3, n)"""
        if self._preprocessing.is_centred:
            return np.full((3, len(positions)), 0.5)
        sample_ids = (
            positions.epoch.astype(np.uint64),
            positions.shard.astype(np.uint64),
            positions.index.astype(np.uint64),
        )
        return np.stack([uniform(self._preprocessing.seed, _CROP_STREAM, *sample_ids, draw) for draw in range(3)])

    def _first_usable(
        self, positions: SamplePositions, row: int, draws: NDArray[np.float64], broken: Counter[str]
    ) -> tuple[int, Crop, str]:
        """Return the index, crop and caption of the sample, or of the next usable one of its shard."""
        reasons: Counter[str] = Counter()
        view = self._preprocessing
        epoch, shard, wanted = (int(column[row]) for column in (positions.epoch, positions.shard, positions.index))
        reader, rule = self._shards.reader(shard), view.rule(shard)
        for number in (*range(wanted, len(reader)), *range(wanted)):
            sample = reader.read(number, with_json=rule.reads_json)
            if rule.annotations:
                path = self._shards.shards[shard].path
                sample = replace(sample, annotations=annotations_of(path, number, len(reader), rule.annotations))
            caption = self._caption(rule, rule.captions(sample), epoch, shard, number)
            crop = (
                "no_caption"
                if caption is None
                else decode_crop(sample.image, draws, view.crop_scale, view.image_size, view.resizes_on_device)
            )
            if caption is not None and not isinstance(crop, str):
                return number, crop, caption
            reasons[str(crop)] += 1
            if number == wanted:  # later ones are counted when the stream reaches them
                broken[str(crop)] += 1
        way_out = "; correct train.caption_keys" if reasons.keys() == {"no_caption"} and rule.keys else ""
        path = self._shards.shards[shard].path
        raise TrainerError(f"shard {path} holds no usable sample: {_listing(reasons)}{way_out}")

    def _caption(self, rule: CaptionRule, usable: list[str], epoch: int, shard: int, number: int) -> str | None:
        if len(usable) < 2 or rule.choice == "first":
            return usable[0] if usable else None
        return usable[int(uniform(self._preprocessing.seed, _CAPTION_STREAM, epoch, shard, number)[0] * len(usable))]


def _listing(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))


def decode_crop(
    encoded: bytes | None,
    draws: NDArray[np.float64],
    crop_scale: tuple[float, float],
    size: int,
    resizes_on_device: bool = False,
) -> Crop | Unusable:
    """Decode an image and cut a random square, resized to `size` unless the device does that; or say why it failed.

    The square's area is a fraction within `crop_scale` of the largest square's; its offset is uniform (CLIP section
    2.4: "a random square crop from resized images"). `draws`: three numbers in [0, 1).

    Raises:
        TrainerError: too little memory.
    """
    if not encoded:
        return "no_image"
    low, high = crop_scale
    side_fraction = float(np.sqrt(low + draws[0] * (high - low)))
    try:
        image = decode_rgb(encoded, min_side=int(np.ceil(size / side_fraction)))
    except ImageDecodeError as error:
        return error.failure
    except MemoryError as error:  # which says nothing about the image
        raise TrainerError(
            "too little memory to decode an image: lower train.workers or train.prefetch, and run again to resume"
        ) from error
    height, width = image.shape[:2]
    side = min(width, height) * side_fraction
    left, top = (float(draw) * (length - side) for draw, length in zip(draws[1:], (width, height), strict=True))
    if resizes_on_device:
        return cut(image, left, top, side, size)
    return Crop(resized(Image.fromarray(image), left, top, side, size), 0.0, 0.0, float(size))


@dataclass(frozen=True)
class RankSampler:
    """The positions of the stream that one rank reads, chunk by chunk."""

    order: Order
    batch: int
    lanes: int
    start_step: int
    total_steps: int
    rank: int = 0
    world_size: int = 1

    @property
    def chunks_per_step(self) -> int:
        """How many chunks make up this rank's part of one step."""
        return -(-self.batch // self.world_size // MAX_CHUNK)

    def __iter__(self) -> Iterator[SamplePositions]:
        own_offsets = rank_offsets(self.batch, self.lanes, self.rank, self.world_size)
        for step in range(self.start_step, self.total_steps):
            positions = self.order.at(step * self.batch + own_offsets)
            for part in np.array_split(np.arange(len(own_offsets)), self.chunks_per_step):
                yield positions.take(part)

    def __len__(self) -> int:
        return (self.total_steps - self.start_step) * self.chunks_per_step


def load_steps(
    pairs: PairDataset, sampler: RankSampler, *, workers: int, prefetch: int, device: torch.device
) -> Generator[Batch, None, None]:
    """Yield this rank's part of each step, in order, prepared ahead by `workers` processes (0: in this process).

    Images and tokens are on `device`.

    Raises:
        TrainerError: a shard cannot be read, or holds no usable sample.
    """
    loader = DataLoader(
        pairs,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_outlive_signals,
    )
    chunks = iter(loader)
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    try:
        for _ in range(sampler.start_step, sampler.total_steps):
            step = [_checked(next(chunks)) for _ in range(sampler.chunks_per_step)]
            yield _beside(copying, step, device, pairs.image_size)
    finally:
        del chunks  # its destructor ends the workers, but a traceback could keep it alive


def _beside(copying: "torch.cuda.Stream | None", chunks: list[Batch], device: torch.device, size: int) -> Batch:
    """Copy and resize a step's chunks while the GPU computes the step before: on a stream of their own."""
    if copying is None:
        return concatenated(chunks, device, size)
    computing = torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        batch = concatenated(chunks, device, size)
    computing.wait_stream(copying)
    for tensor in (batch.images, batch.tokens):
        tensor.record_stream(computing)  # its memory is not given to the next copy before the step has used it
    return batch


def _outlive_signals(worker: int) -> None:
    """Let the training process finish its step when a SIGTERM or Ctrl-C reaches every process of a job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(LAST_STEP_S))


def _checked(chunk: Batch | TrainerError) -> Batch:
    if isinstance(chunk, TrainerError):
        raise chunk
    return chunk


def concatenated(chunks: list[Batch], device: torch.device, size: int = 0) -> Batch:
    """Concatenate the chunks of a step, images and tokens on the device; resize the crops of each to `size` there.

    Chunks are moved one by one, because only memory that the loader has pinned is copied asynchronously.
    """
    broken: Counter[str] = Counter()
    for chunk in chunks:
        broken.update(chunk.broken)
    return Batch(
        torch.cat([_images(chunk, device, size) for chunk in chunks]),
        torch.cat([chunk.tokens.to(device, non_blocking=True) for chunk in chunks]),
        torch.cat([chunk.shards for chunk in chunks]),
        torch.cat([chunk.indices for chunk in chunks]),
        dict(broken),
    )


def _images(chunk: Batch, device: torch.device, size: int) -> Tensor:
    images = chunk.images.to(device, non_blocking=True)
    return images if chunk.boxes is None else resize(images, chunk.boxes.to(device, non_blocking=True), size)


@cache
def _mean_and_deviation(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return CLIP's pixel mean and deviation, cached: creating them at each step would stall the device."""
    mean, deviation = (torch.tensor(c, device=device).mul_(255) for c in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return mean.view(1, 3, 1, 1), deviation.view(1, 3, 1, 1)


def to_model_input(images: Tensor, *, channels_last: bool = False) -> Tensor:
    """Turn uint8 images (n, size, size, 3) into the model's input: normalised, (n, 3, size, size)."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout)
    mean, deviation = _mean_and_deviation(images.device)
    return pixels.sub_(mean).div_(deviation)
