"""How well images and captions fit by a CLIP model: the cosine of their features. For `[scores]` of the pipeline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from trainer.config import EvaluateConfig
from trainer.evaluation.models import Encoder, open_encoder


@dataclass(frozen=True)
class CosineScorer:
    """A model that scores pairs."""

    encoder: Encoder

    def score(self, images: Sequence[bytes], captions: Sequence[str]) -> np.ndarray:
        """Return the cosine of each image file and its caption, (n,) float32 in -1..1.

        Rounded to 1e-4: batches of other sizes and other processors differ by less, mostly.
        """
        texts = self.encoder.encode_texts(list(captions))
        features, readable = zip(*self.encoder.encode_images(images), strict=True)
        if not all(is_readable for part in readable for is_readable in part):
            raise ValueError("an image of the set cannot be decoded")
        cosines = (F.normalize(torch.cat(features), dim=-1) * texts).sum(dim=-1)
        return np.round(cosines.numpy(), 4)


def open_scorer(config: Mapping[str, Any]) -> CosineScorer:
    """Open the model of a `[scores]` table.

    Raises:
        TrainerError: it is no checkpoint.
    """
    settings = EvaluateConfig(batch=config["batch"], device=config["device"], precision="fp32", workers=1)
    return CosineScorer(open_encoder(config["checkpoint"], config["architecture"], config=settings))
