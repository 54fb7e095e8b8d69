"""From sample positions to tensors: read, decode at reduced scale, crop, resize, tokenise, in worker processes.

All randomness of a sample (its crop, which of its captions) is a hash of (seed, epoch, sample), so a batch has the
same bytes in any worker of any rank. An unusable sample is counted by reason and replaced by the next usable one of
its shard.
"""

import signal
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dedup.decode import DecodeFailure, ImageDecodeError, decode_rgb
from trainer.errors import TrainerError
from trainer.online_balance import BalancedOrder
from trainer.order import SampleOrder, SamplePositions, rank_offsets, uniform
from trainer.shards import Sample, ShardSet

Unusable = Literal["no_image", "no_caption"] | DecodeFailure
MAX_CHUNK = 256
"""Samples that one worker prepares at a time; a step's batch is concatenated from these."""
LAST_STEP_S = 60
"""How long a worker keeps running after SIGTERM, unless its training process ends it earlier."""
MAX_CACHED_WORDS = 500_000
"""Words whose tokens a worker remembers: about 100 MB."""
SYMBOLS_PER_TOKEN = 64
"""How much of a word is encoded per token of context: no token is longer than 32 symbols, and the second 32 are a
margin, because the cut changes the merges of a few symbols before it."""
_CROP_STREAM, _CAPTION_STREAM = 2, 3  # order.py uses 0 and 1


class Batch(NamedTuple):
    """`n` pairs."""

    images: Tensor  # (n, size, size, 3) uint8
    tokens: Tensor  # (n, context) int64
    shards: Tensor  # (n,) int64, with `indices` the samples' positions
    indices: Tensor
    broken: dict[str, int]  # by reason, positions of the stream whose sample is unusable


@dataclass(frozen=True)
class Preprocessing:
    """How images are cropped and captions chosen and tokenised."""

    image_size: int
    context_length: int
    seed: int
    crop_scale: tuple[float, float] = (0.9, 1.0)  # fraction of the area of the largest square
    captions: Literal["first", "any"] = "first"


class PairDataset(Dataset[Batch | TrainerError]):
    """Turns sample positions into a batch; runs in loader workers."""

    def __init__(self, shards: ShardSet, preprocessing: Preprocessing) -> None:
        self._shards = shards
        self._preprocessing = preprocessing

    def __getitem__(self, positions: SamplePositions) -> Batch | TrainerError:
        try:
            return self.batch(positions)
        except TrainerError as error:
            return error  # DataLoader would wrap it in a traceback; `load_steps` raises it

    def batch(self, positions: SamplePositions) -> Batch:
        """Return the samples at these positions.

        Raises:
            TrainerError: a shard cannot be read, or holds no usable sample.
        """
        size, count = self._preprocessing.image_size, len(positions)
        images = np.empty((count, size, size, 3), np.uint8)
        captions: list[str] = []
        index = positions.index.copy()
        draws = self._crop_draws(positions)
        broken: Counter[str] = Counter()
        for row in range(count):
            index[row], caption = self._first_usable(positions, row, draws[:, row], images[row], broken)
            captions.append(caption)
        return Batch(
            torch.from_numpy(images), tokenize(captions, self._preprocessing.context_length),
            torch.from_numpy(positions.shard), torch.from_numpy(index), dict(broken),
        )  # fmt: skip

    def _crop_draws(self, positions: SamplePositions) -> NDArray[np.float64]:
        """Return three numbers in [0, 1) per sample: the size and offsets of its crop. (3, n)"""
        sample_ids = (
            positions.epoch.astype(np.uint64),
            positions.shard.astype(np.uint64),
            positions.index.astype(np.uint64),
        )
        return np.stack([uniform(self._preprocessing.seed, _CROP_STREAM, *sample_ids, draw) for draw in range(3)])

    def _first_usable(
        self,
        positions: SamplePositions,
        row: int,
        draws: NDArray[np.float64],
        image: NDArray[np.uint8],
        broken: Counter[str],
    ) -> tuple[int, str]:
        """Write the sample's image, or that of the next usable one of its shard; return its index and caption."""
        reasons: Counter[str] = Counter()
        epoch, shard, wanted = (int(column[row]) for column in (positions.epoch, positions.shard, positions.index))
        reader = self._shards.reader(shard)
        for number in (*range(wanted, len(reader)), *range(wanted)):
            sample = reader.read(number, with_json=self._preprocessing.captions == "any")
            caption = self._caption(stored_captions(sample), epoch, shard, number)
            problem = (
                "no_caption"
                if caption is None
                else decode_crop(sample.image, draws, self._preprocessing.crop_scale, image)
            )
            if problem is None and caption is not None:
                return number, caption
            reasons[str(problem)] += 1
            if number == wanted:  # later ones are counted when the stream reaches them
                broken[str(problem)] += 1
        raise TrainerError(f"shard {self._shards.shards[shard].path} holds no usable sample: {_listing(reasons)}")

    def _caption(self, usable: list[str], epoch: int, shard: int, number: int) -> str | None:
        if len(usable) < 2:
            return usable[0] if usable else None
        return usable[int(uniform(self._preprocessing.seed, _CAPTION_STREAM, epoch, shard, number)[0] * len(usable))]


class _Tokenizer(SimpleTokenizer):  # type: ignore[misc]  # open_clip is not typed
    """open_clip's tokenizer, but linear in a word's length: open_clip merges the whole word, then cuts the text."""

    def encode(self, text: str) -> list[int]:
        """Return the text's tokens, or at least the first `context_length` of them."""
        tokens: list[int] = []
        for word in self.pat.finditer(self.clean_fn(text)):
            if len(tokens) >= self.context_length:
                break
            symbols = "".join(self.byte_encoder[byte] for byte in word.group().encode())
            near = symbols[: SYMBOLS_PER_TOKEN * self.context_length]
            tokens += [self.encoder[token] for token in self.bpe(near).split(" ")]
        return tokens


@cache
def _tokenizer(context_length: int) -> _Tokenizer:
    return _Tokenizer(context_length=context_length)


def tokenize(texts: list[str], context_length: int) -> Tensor:
    """Return the texts' tokens, (n, context_length) int64, zero-padded; longer texts are cut (CLIP section 2.4)."""
    tokenizer = _tokenizer(context_length)
    if len(tokenizer.cache) > MAX_CACHED_WORDS:
        tokenizer.cache = {word: word for word in ("<start_of_text>", "<end_of_text>")}
    tokens: Tensor = tokenizer(texts)
    return tokens


def stored_captions(sample: Sample) -> list[str]:
    """Return the non-blank `captions` of the sample's json if it was read and lists any, else its txt."""
    captions = _listed_captions(sample.json or b"")
    if not captions and sample.text is not None:
        captions = [sample.text.decode("utf-8", "replace")]
    return [stripped for caption in captions if (stripped := caption.strip())]


def _listed_captions(metadata: bytes) -> list[str]:
    try:
        captions = orjson.loads(metadata).get("captions")
    except (orjson.JSONDecodeError, AttributeError):
        return []
    return [c for c in captions if isinstance(c, str)] if isinstance(captions, list) else []


def _listing(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))


def decode_crop(
    encoded: bytes | None, draws: NDArray[np.float64], crop_scale: tuple[float, float], out: NDArray[np.uint8]
) -> Unusable | None:
    """Decode an image, cut a random square and write it to `out`, (size, size, 3); return why it failed, or None.

    The square's area is a fraction within `crop_scale` of the largest square's; its offset is uniform (CLIP section
    2.4: "a random square crop from resized images"). `draws`: three numbers in [0, 1).
    """
    if not encoded:
        return "no_image"
    size = len(out)
    low, high = crop_scale
    side_fraction = float(np.sqrt(low + draws[0] * (high - low)))
    try:
        image = Image.fromarray(decode_rgb(encoded, min_side=int(np.ceil(size / side_fraction))))
    except ImageDecodeError as error:
        return error.failure
    side = min(image.size) * side_fraction
    left, top = (float(draw) * (length - side) for draw, length in zip(draws[1:], image.size, strict=True))
    box = (left, top, left + side, top + side)
    out[:] = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return None


@dataclass(frozen=True)
class RankSampler:
    """The positions of the stream that one rank reads, chunk by chunk."""

    order: SampleOrder | BalancedOrder
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
    try:
        for _ in range(sampler.start_step, sampler.total_steps):
            yield concatenated([_checked(next(chunks)) for _ in range(sampler.chunks_per_step)], device)
    finally:
        del chunks  # its destructor ends the workers, but a traceback could keep it alive


def _outlive_signals(worker: int) -> None:
    """Let the training process finish its step when a SIGTERM or Ctrl-C reaches every process of a job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(LAST_STEP_S))


def _checked(chunk: Batch | TrainerError) -> Batch:
    if isinstance(chunk, TrainerError):
        raise chunk
    return chunk


def concatenated(chunks: list[Batch], device: torch.device) -> Batch:
    """Concatenate the chunks of a step, images and tokens on the device.

    Chunks are moved one by one, because only memory that the loader has pinned is copied asynchronously.
    """
    broken: Counter[str] = Counter()
    for chunk in chunks:
        broken.update(chunk.broken)
    return Batch(
        torch.cat([chunk.images.to(device, non_blocking=True) for chunk in chunks]),
        torch.cat([chunk.tokens.to(device, non_blocking=True) for chunk in chunks]),
        torch.cat([chunk.shards for chunk in chunks]),
        torch.cat([chunk.indices for chunk in chunks]),
        dict(broken),
    )


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
