"""Weights to start from: of open_clip, or of an earlier run of this trainer."""

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from open_clip.factory import load_checkpoint
from open_clip.model import CLIP, resize_pos_embed, resize_text_pos_embed

from trainer import checkpoint
from trainer.errors import TrainerError


def load_initial(model: CLIP, path: str) -> None:
    """Load weights into a model; position embeddings are interpolated to its resolution.

    `path`: a checkpoint file of open_clip, a `step-*.pt` of a run, or the folder that a run exported.

    Raises:
        TrainerError: the weights cannot be read, or have another architecture.
    """
    source = Path(path)
    if source.is_dir():
        source /= "open_clip_model.safetensors"
    try:
        if checkpoint.is_checkpoint_name(source):
            _load_step(model, checkpoint.load(source)["model"])
        else:
            load_checkpoint(model, str(source))
    except Exception as error:  # open_clip and torch raise any error of their readers
        reason = shorten(str(error), 300)  # torch lists every weight that does not fit
        raise TrainerError(
            f"train.initial = {path!r} cannot be used: {reason}; give an open_clip checkpoint, a step-*.pt or an "
            "exported model/ folder of this trainer, with the architecture of train.model"
        ) from error


def _load_step(model: CLIP, weights: dict[str, Any]) -> None:
    """Load our own checkpoints, whose layout open_clip's reader does not know, with the same adjustments."""
    adjusted = checkpoint.with_scalars_of_shape(weights, model.logit_scale.shape)
    if model.logit_bias is not None:
        adjusted.setdefault("logit_bias", torch.zeros_like(model.logit_scale))
    resize_pos_embed(adjusted, model)
    resize_text_pos_embed(adjusted, model)
    model.load_state_dict(adjusted)
