"""Sizes of the paper's models, the bag-of-words tower against its formula, the recipe's parameter groups."""

import math
from typing import Any

import pytest
import torch

from trainer.config import preset
from trainer.model import build_model, clamp_logit_scale, with_text_tower
from trainer.optimizer import build_optimizer

torch.set_num_threads(1)

# Millions of parameters of the image tower and in total, CLIP tables 19 and 20.
PAPER_SIZES = {
    "RN50": (38.3, 102.0),
    "RN101": (56.3, 119.7),
    "RN50x4": (87.1, 178.3),
    "RN50x16": (167.3, 291.0),
    "RN50x64": (420.4, 623.3),
    "ViT-B/32": (87.9, 151.3),
    "ViT-B/16": (86.2, 149.6),
    "ViT-L/14": (304.0, 427.6),
    "ViT-L/14@336": (304.3, 427.9),
}


def _count_parameters(architecture: dict[str, Any]) -> tuple[int, int]:
    """Return the parameters of the image tower and of the whole model, without allocating them."""
    with torch.device("meta"):
        model = build_model(architecture)
    return sum(p.numel() for p in model.visual.parameters()), sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "millions"), PAPER_SIZES.items())
def test_models_have_the_papers_sizes_and_activation(name: str, millions: tuple[float, float]):
    architecture = preset(name)["architecture"]
    assert architecture["quick_gelu"] is True
    assert tuple(count / 1e6 for count in _count_parameters(architecture)) == pytest.approx(millions, abs=0.051)


def _bag_of_words() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(with_text_tower(preset("tiny")["architecture"], "bag-of-words"), text="bag-of-words").eval()


def test_bag_of_words_is_the_mean_of_its_words():
    model = _bag_of_words()
    block = model.transformer.resblocks[0]
    torch.nn.init.normal_(block.ln_1.weight)
    tokens = torch.tensor([[49406, 320, 1929, 49407] + [0] * 12])
    with torch.no_grad():
        words = model.token_embedding(tokens[0, :4])
        bag = words[3] + block.ln_1(words).mean(dim=0)
        expected = model.ln_final(bag) @ model.text_projection
        torch.testing.assert_close(model.encode_text(tokens)[0], expected, rtol=1e-5, atol=1e-6)


def test_bag_of_words_ignores_order_and_learns_only_words_gains_and_the_projection():
    model = _bag_of_words()
    sentence = torch.tensor([[49406, 320, 1929, 5, 49407] + [0] * 11])
    shuffled = torch.tensor([[49406, 5, 320, 1929, 49407] + [0] * 11])
    other = torch.tensor([[49406, 5, 320, 1930, 49407] + [0] * 11])
    torch.testing.assert_close(model.encode_text(sentence), model.encode_text(shuffled))
    assert not torch.allclose(model.encode_text(sentence), model.encode_text(other), atol=1e-4)
    text = {name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("visual.")}
    gains = {f"{norm}.{part}" for norm in ("ln_final", "transformer.resblocks.0.ln_1") for part in ("weight", "bias")}
    assert text == {"token_embedding.weight", "text_projection", "logit_scale"} | gains


def test_logit_scale_starts_at_one_over_007_and_stops_at_100():
    model = build_model(preset("tiny")["architecture"])
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.logit_scale.fill_(9)
    clamp_logit_scale(model, 100.0)
    assert model.logit_scale.exp().item() == pytest.approx(100, rel=1e-6)


def test_weight_decay_leaves_gains_and_biases_alone():
    model = build_model(preset("tiny-resnet")["architecture"])
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=0.2, beta1=0.9, beta2=0.98, eps=1e-6)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        plain = name.endswith("bias") or ".bn" in name or "ln_" in name or "downsample.1" in name
        expected = 0.0 if plain or name == "logit_scale" else 0.2
        assert decay[id(parameter)] == expected, name
    assert math.isclose(optimizer.defaults["betas"][1], 0.98)
