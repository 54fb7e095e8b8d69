"""Image-text retrieval on shards: recall at 1, 5 and 10 in both directions (CLIP table 13)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer.data import stored_captions
from trainer.errors import TrainerError
from trainer.evaluation.models import Encoder
from trainer.shards import ShardSet

DEPTHS = (1, 5, 10)
PREFIX = "a photo of "  # worth a point or two of recall, by the paper
_ROWS = 1_024  # similarities held at a time


@dataclass(frozen=True)
class RetrievalResult:
    """Shares of queries with a right answer among the first k."""

    images: int
    captions: int
    text_recall: dict[int, float]  # an image asks for one of its captions
    image_recall: dict[int, float]  # a caption asks for its image


def retrieve(encoder: Encoder, shards: ShardSet, prefix: str = "") -> RetrievalResult:
    """Rank all captions for each image and all images for each caption.

    An image's captions are the `captions` of its json, or the txt. Unreadable images are left out with their captions.
    Of equal scores the earlier sample's goes first: a model to which all is the same gets 1 of n right, not n.
    """
    captions: list[list[str]] = []
    image_parts, owners = [], []
    for features, readable in encoder.encode_images(_images(shards, captions)):
        image_parts.append(features)
        owners += readable
    kept = [own for own, is_readable in zip(captions, owners, strict=True) if is_readable]
    if not kept:
        raise TrainerError("no sample of the shards has a readable image and a caption")
    image_ND = F.normalize(torch.cat([part for part in image_parts if len(part)]), dim=-1)
    text_MD = encoder.encode_texts([prefix + caption for own in kept for caption in own])
    owner = np.repeat(np.arange(len(kept)), [len(own) for own in kept])
    best_image = _ranks(text_MD, image_ND, owner)
    best_text = _best_rank_per_image(image_ND, text_MD, owner)
    return RetrievalResult(
        images=len(kept),
        captions=len(owner),
        text_recall={k: float((best_text < k).mean()) for k in DEPTHS},
        image_recall={k: float((best_image < k).mean()) for k in DEPTHS},
    )


def _images(shards: ShardSet, captions: list[list[str]]) -> Iterator[bytes]:
    for shard in range(len(shards.shards)):
        reader = shards.reader(shard)
        for number in range(len(reader)):
            sample = reader.read(number, with_json=True)
            own = stored_captions(sample)
            if sample.image and own:
                captions.append(own)
                yield sample.image


def _ranks(query_QD: Tensor, target_TD: Tensor, answer: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many targets go before each query's answer."""
    targets = torch.arange(len(target_TD))
    ranks = []
    for start in range(0, len(query_QD), _ROWS):
        scores = query_QD[start : start + _ROWS] @ target_TD.T
        answers = torch.from_numpy(answer[start : start + _ROWS])[:, None]
        own = scores.gather(1, answers)
        ranks.append(((scores > own) | ((scores == own) & (targets < answers))).sum(dim=1))
    return torch.cat(ranks).numpy()


def _best_rank_per_image(image_ND: Tensor, text_MD: Tensor, owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many captions of other images go before the best caption of each image."""
    owners = torch.from_numpy(owner)
    ranks = []
    for start in range(0, len(image_ND), _ROWS):
        scores = image_ND[start : start + _ROWS] @ text_MD.T
        images = torch.arange(start, start + len(scores))[:, None]
        own = scores.masked_fill(owners[None, :] != images, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(((scores > own) | ((scores == own) & (owners < images))).sum(dim=1))
    return torch.cat(ranks).numpy()
