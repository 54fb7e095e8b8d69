"""Weights to start from: of open_clip, or of an earlier run of this trainer."""

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from open_clip.factory import load_checkpoint
from open_clip.model import CLIP, resize_pos_embed, resize_text_pos_embed
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.sharded import read_checkpoint
from trainer.store import local_copy


def load_initial(model: CLIP, path: str, name: str = "") -> None:
    """Load weights into a model; position embeddings are interpolated to its resolution.

    `path`: a checkpoint file of open_clip, a `step-*` of a run, the folder that a run exported, also as URLs; or a tag
    of open_clip's weights for the architecture `name`, which are downloaded once.

    Raises:
        TrainerError: the weights cannot be read, or have another architecture.
    """
    try:
        with local_copy(path) as local:
            source = Path(local)
            if not source.is_absolute() and not source.exists():
                source = _downloaded(name, path)
            if checkpoint.is_checkpoint_name(source):
                _load_step(model, read_checkpoint(source)["model"])
            elif source.is_dir():
                load_checkpoint(model, str(source / "open_clip_model.safetensors"))
            else:
                load_checkpoint(model, str(source))
    except Exception as error:  # open_clip and torch raise any error of their readers
        reason = checkpoint.why_not_loaded(error)
        if reason.endswith(":"):  # torch lists every weight that does not fit
            reason = shorten(str(error), 300)
        raise TrainerError(
            f"train.initial = {path!r} cannot be used: {reason}; give an open_clip checkpoint, a step-*.pt or an "
            "exported model/ folder of this trainer, with the architecture of train.model"
        ) from error


def _downloaded(name: str, tag: str) -> Path:
    """Return the file of one of open_clip's pretrained weights."""
    config = get_pretrained_cfg(name, tag)
    if not config:
        tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"it is neither a file nor a tag of open_clip for {name}, which has {tags}")
    return Path(download_pretrained(config))


def _load_step(model: CLIP, weights: dict[str, Any]) -> None:
    """Load our own checkpoints, whose layout open_clip's reader does not know, with the same adjustments."""
    adjusted = checkpoint.with_scalars_of_shape(weights, model.logit_scale.shape)
    if model.logit_bias is not None:
        adjusted.setdefault("logit_bias", torch.zeros_like(model.logit_scale))
    resize_pos_embed(adjusted, model)
    resize_text_pos_embed(adjusted, model)
    model.load_state_dict(adjusted)
