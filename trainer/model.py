"""The model architectures. All are instances of open_clip's `CLIP` class, so open_clip opens every checkpoint.

So is the bag-of-words text tower (CLIP figure 2, the "CBOW" of figure 3): a transformer block without queries and
keys attends uniformly, that is, it averages its values over the words.
"""

from copy import deepcopy
from typing import Any, Literal

import torch
from open_clip.factory import get_model_config
from open_clip.model import CLIP
from torch import nn

from trainer.errors import TrainerConfigError
from trainer.loss import Objective

TextTower = Literal["transformer", "bag-of-words"]
INITIAL_LOGIT_SCALE = 2.6592600369327783  # ln(1 / 0.07), CLIP section 2.5
SIGLIP_LOGITS = {"init_logit_scale": 2.302585092994046, "init_logit_bias": -10.0}  # ln 10 and -10, arXiv 2303.15343


def named_architecture(name: str) -> dict[str, Any]:
    """Return open_clip's config of a named architecture."""
    config: dict[str, Any] | None = get_model_config(name)
    if config is None or "hf_model_name" in config["text_cfg"] or config.get("custom_text"):
        raise TrainerConfigError(
            f"open_clip has no CLIP architecture {name!r} that this trainer can build: choose one of the presets, or "
            "an open_clip name with its own text transformer, such as ViT-B-32"
        )
    return config


def with_text_tower(architecture: dict[str, Any], text: TextTower) -> dict[str, Any]:
    """Return the architecture with the chosen text tower in place of its own."""
    config = deepcopy(architecture)
    if text == "bag-of-words":
        width = config["text_cfg"]["width"]
        config["text_cfg"] |= {"layers": 1, "mlp_ratio": 1.5 / width}  # one hidden unit, which stays unused
    return config


def build_model(
    architecture: dict[str, Any],
    *,
    text: TextTower = "transformer",
    objective: Objective = "infonce",
    flat_logit_scale: bool = False,
) -> CLIP:
    """Build a model with fresh weights.

    `architecture` is a result of `with_text_tower`. `flat_logit_scale` gives the scale the shape (1,), because FSDP
    cannot shard a scalar; checkpoints always hold the scalar.
    """
    model = CLIP(**open_clip_config(architecture, objective), nonscalar_logit_scale=flat_logit_scale)
    if text == "bag-of-words":
        _freeze_into_average(model)
    return model


def open_clip_config(architecture: dict[str, Any], objective: Objective) -> dict[str, Any]:
    """Return the arguments of open_clip's `CLIP`, as in an `open_clip_config.json`."""
    logits = SIGLIP_LOGITS if objective == "siglip" else {"init_logit_scale": INITIAL_LOGIT_SCALE}
    return {**deepcopy(architecture), **logits}


@torch.no_grad()
def _freeze_into_average(model: CLIP) -> None:
    """Make the text block's output at the end token that token plus the mean of all tokens, both order-free."""
    (block,) = model.transformer.resblocks
    width = model.token_embedding.embedding_dim
    values_only = torch.cat([torch.zeros(2 * width, width), torch.eye(width)])  # no queries, no keys
    block.attn.in_proj_weight.copy_(values_only)
    block.attn.out_proj.weight.copy_(torch.eye(width))
    for parameter in (block.attn.in_proj_bias, block.attn.out_proj.bias, model.positional_embedding):
        nn.init.zeros_(parameter)
    for parameter in block.mlp.parameters():
        nn.init.zeros_(parameter)
    model.positional_embedding.requires_grad_(False)
    for module in (block.attn, block.ln_2, block.mlp):
        module.requires_grad_(False)


def clamp_logit_scale(model: CLIP, max_logit_scale: float) -> None:
    """Keep exp(t) at or below the paper's 100 (section 2.5), after an optimiser step."""
    with torch.no_grad():
        model.logit_scale.clamp_(max=torch.tensor(max_logit_scale).log().item())
