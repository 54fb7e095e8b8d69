"""Image-text retrieval on shards: recall at 1, 5 and 10 in both directions (CLIP table 13)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer.captions import stored_captions
from trainer.errors import TrainerError
from trainer.evaluation.models import Encoder
from trainer.shards import ShardSet

DEPTHS = (1, 5, 10)
PREFIX = "a photo of "  # improves recall by 1 to 2 points (CLIP paper)
_ROWS = 1_024  # similarities held at a time


@dataclass(frozen=True)
class RetrievalResult:
    """Recall at k: the fraction of queries with a match among the first k results."""

    images: int
    captions: int
    text_recall: dict[int, float]  # image to text: a match is any of the image's captions
    image_recall: dict[int, float]  # text to image


def retrieve(encoder: Encoder, shards: ShardSet, prefix: str = "") -> RetrievalResult:
    """Rank all captions for each image and all images for each caption.

    An image's captions are the `captions` of its json, or the txt. Unreadable images are left out with their captions.
    Ties are ranked by sample order, so a model that scores everything the same gets 1 of n right, not all n.
    """
    captions: list[list[str]] = []
    image_parts, readable_flags = [], []
    for features, readable in encoder.encode_images(_images(shards, captions)):
        image_parts.append(features)
        readable_flags += readable
    kept = [texts for texts, is_readable in zip(captions, readable_flags, strict=True) if is_readable]
    if not kept:
        raise TrainerError("no sample of the shards has a readable image and a caption")
    image_ND = F.normalize(torch.cat([part for part in image_parts if len(part)]), dim=-1)
    text_MD = encoder.encode_texts([prefix + caption for texts in kept for caption in texts])
    owner = np.repeat(np.arange(len(kept)), [len(texts) for texts in kept])
    text_recall, image_recall = recalls(image_ND, text_MD, owner)
    return RetrievalResult(len(kept), len(owner), text_recall, image_recall)


def recalls(image_ND: Tensor, text_MD: Tensor, owner: NDArray[np.int64]) -> tuple[dict[int, float], dict[int, float]]:
    """Return recall by depth, image to text and text to image, of normalised features; `owner`: each text's image."""
    best_image = _ranks(text_MD, image_ND, owner)
    best_text = _best_rank_per_image(image_ND, text_MD, owner)
    return (
        {k: float((best_text < k).mean()) for k in DEPTHS},
        {k: float((best_image < k).mean()) for k in DEPTHS},
    )


def _images(shards: ShardSet, captions: list[list[str]]) -> Iterator[bytes]:
    for shard in range(len(shards.shards)):
        reader = shards.reader(shard)
        for number in range(len(reader)):
            sample = reader.read(number, with_json=True)
            texts = stored_captions(sample)
            if sample.image and texts:
                captions.append(texts)
                yield sample.image


def _ranks(query_QD: Tensor, target_TD: Tensor, match: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many targets rank before each query's match."""
    targets = torch.arange(len(target_TD))
    ranks = []
    for start in range(0, len(query_QD), _ROWS):
        scores = query_QD[start : start + _ROWS] @ target_TD.T
        matches = torch.from_numpy(match[start : start + _ROWS])[:, None]
        match_scores = scores.gather(1, matches)
        ranks.append(((scores > match_scores) | ((scores == match_scores) & (targets < matches))).sum(dim=1))
    return torch.cat(ranks).numpy()


def _best_rank_per_image(image_ND: Tensor, text_MD: Tensor, owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many captions of other images rank before the best caption of each image."""
    owners = torch.from_numpy(owner)
    ranks = []
    for start in range(0, len(image_ND), _ROWS):
        scores = image_ND[start : start + _ROWS] @ text_MD.T
        images = torch.arange(start, start + len(scores))[:, None]
        best = scores.masked_fill(owners[None, :] != images, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(((scores > best) | ((scores == best) & (owners < images))).sum(dim=1))
    return torch.cat(ranks).numpy()
