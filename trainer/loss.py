"""The contrastive objectives over a batch that is spread across ranks, in bounded memory.

Each rank holds `b` images and texts of a global batch of `N`, gathers the features of the others, and computes only its
own rows (images against all texts) and columns (texts against all images). The (b, N) logits exist one slice at a
time: the gradients are computed together with the loss, so nothing of size (b, N) is kept for the backward pass, and
the gradients of other ranks' features are summed on the rank that owns them.

Averaged over ranks, as DDP and FSDP average gradients, the loss and its gradients by the features equal those of one
process with all N pairs. So do the weights' gradients, unless features depend on a rank's other samples (BatchNorm).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

Objective = Literal["infonce", "siglip"]
MAX_LOGITS = 2**26
"""Logits of a slice: 256 MiB in float32, 2,048 rows of a batch of 32,768. InfoNCE holds one slice, SigLIP two."""


class _Side(NamedTuple):
    """Sums over the logits of one side: the loss and its gradients."""

    loss: Tensor
    anchors: Tensor  # (b, D)
    others: Tensor  # (N, D)
    scale: Tensor
    bias: Tensor


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    objective: Objective = "infonce",
    max_logits: int = MAX_LOGITS,
    tf32: bool = False,
) -> Tensor:
    """Return this rank's part of the loss; the mean over ranks is the loss of the global batch.

    `image` and `text` are L2-normalised features (b, D), row i of one belonging to row i of the other; `b` is the same
    on every rank. `scale` is exp(t). InfoNCE: the mean of the cross-entropies of both directions (CLIP figure 3).
    SigLIP (arXiv 2303.15343): the pairwise log-sigmoids summed over texts and averaged over images; needs `bias`.
    `tf32`: a GPU rounds the factors of matrix products to 10 bits of mantissa. Logits then differ by at most
    2^-10 x scale, 0.1 at scale 100, and by a hundredth of that on average (tests/trainer/test_loss.py).
    """
    if bias is None:
        bias = torch.zeros_like(scale)
    loss: Tensor = _ContrastiveLoss.apply(image, text, scale, bias, objective, max_logits, tf32)
    return loss


class _ContrastiveLoss(torch.autograd.Function):
    """The loss whose gradients are computed in the forward pass, and only scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        objective: Objective,
        max_logits: int,
        tf32: bool,
    ) -> Tensor:
        with torch.autocast(image.device.type, enabled=False), _matrix_products(tf32=tf32):
            loss, gradients = _loss_and_gradients(image, text, scale, bias, objective, max_logits)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, bias = (outputs[0] * gradient for gradient in ctx.saved_tensors)
        return image, text, scale, bias, None, None, None


@contextmanager
def _matrix_products(*, tf32: bool) -> Iterator[None]:
    """Compute float32 matrix products of a GPU in TF32 or in full."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def whole_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, objective: Objective) -> float:
    """Return the loss of features that one process has all, without gradients by the weights."""
    image, text = _at_least_float32(image), _at_least_float32(text)
    pairs, bias = _SIDES[objective], torch.zeros_like(scale) if bias is None else bias
    sides = [(image, text)] if objective == "siglip" else [(image, text), (text, image)]
    losses = [_one_side(one, other, scale, bias, 0, pairs, MAX_LOGITS).loss for one, other in sides]
    return float(sum(losses)) / len(losses) / len(image)


def _loss_and_gradients(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, objective: Objective, max_logits: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    image_bD, text_bD = _at_least_float32(image), _at_least_float32(text)
    image_ND, text_ND = _gather(image_bD), _gather(text_bD)
    offset = _rank() * len(image)
    pairs = _SIDES[objective]
    logit_scale, logit_bias = scale.detach().to(image_bD.dtype), bias.detach().to(image_bD.dtype)
    weight = 1 / len(image)
    rows = _one_side(image_bD, text_ND, logit_scale, logit_bias, offset, pairs, max_logits)
    image_gradient, text_gradient = rows.anchors, _scatter_sum(rows.others)
    loss, scale_gradient, bias_gradient = rows.loss, rows.scale, rows.bias
    if objective == "infonce":  # SigLIP's pairs are all in the rows of some rank already
        columns = _one_side(text_bD, image_ND, logit_scale, logit_bias, offset, pairs, max_logits)
        image_gradient = image_gradient + _scatter_sum(columns.others)
        text_gradient = text_gradient + columns.anchors
        loss, scale_gradient = loss + columns.loss, scale_gradient + columns.scale
        bias_gradient = bias_gradient + columns.bias
        weight /= 2
    return loss * weight, (
        (image_gradient * weight).to(image.dtype),
        (text_gradient * weight).to(text.dtype),
        (scale_gradient * weight).to(scale.dtype).reshape(scale.shape),
        (bias_gradient * weight).to(bias.dtype).reshape(bias.shape),
    )


def _one_side(
    anchor_bD: Tensor,
    other_ND: Tensor,
    scale: Tensor,
    bias: Tensor,
    offset: int,
    pairs: Callable[[Tensor, Tensor], Tensor],
    max_logits: int,
) -> _Side:
    """Sum the loss and its gradients over all (anchor, other) logits, a slice of anchors at a time.

    `pairs` returns the loss of a slice of logits and replaces the logits by its gradient.
    """
    rows_at_a_time = max(1, max_logits // len(other_ND))
    loss = torch.zeros((), dtype=anchor_bD.dtype, device=anchor_bD.device)
    bias_gradient = torch.zeros_like(loss)
    anchor_gradient, other_gradient = torch.zeros_like(anchor_bD), torch.zeros_like(other_ND)
    buffer = anchor_bD.new_empty(min(rows_at_a_time, len(anchor_bD)), len(other_ND))
    for start in range(0, len(anchor_bD), rows_at_a_time):
        anchors = anchor_bD[start : start + rows_at_a_time]
        targets = torch.arange(start + offset, start + offset + len(anchors), device=anchors.device)
        logits = torch.addmm(bias, anchors * scale, other_ND.T, out=buffer[: len(anchors)])
        loss += pairs(logits, targets)
        gradient = logits  # `pairs` has replaced them
        bias_gradient += gradient.sum()
        torch.mm(gradient, other_ND, out=anchor_gradient[start : start + rows_at_a_time])
        other_gradient.addmm_(gradient.T, anchors)
    scale_gradient = (anchor_gradient * anchor_bD).sum()  # a logit is scale x anchor . other + bias
    return _Side(loss, anchor_gradient * scale, other_gradient * scale, scale_gradient, bias_gradient)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy of each row against its target column; its gradient replaces the logits."""
    row = torch.arange(len(logits), device=logits.device)
    logits -= logits.amax(dim=1, keepdim=True)
    target_logits = logits[row, targets]
    total = logits.exp_().sum(dim=1)
    logits /= total.unsqueeze(1)
    logits[row, targets] -= 1
    return (total.log() - target_logits).sum()


def _log_sigmoid(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed -log sigmoid(z * logit), z = +1 for matching pairs and -1 for others; its gradient replaces
    the logits."""
    row = torch.arange(len(logits), device=logits.device)
    logits[row, targets] *= -1  # now -z * logit everywhere
    loss = torch.logaddexp(logits, logits.new_zeros(())).sum()
    logits.sigmoid_()
    logits[row, targets] *= -1
    return loss


_SIDES: dict[Objective, Callable[[Tensor, Tensor], Tensor]] = {
    "infonce": _cross_entropy,
    "siglip": _log_sigmoid,
}


def _at_least_float32(features: Tensor) -> Tensor:
    features = features.detach()
    return features if features.dtype == torch.float64 else features.float()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _gather(local_bD: Tensor) -> Tensor:
    """Return every rank's features in rank order, (N, D)."""
    if _world_size() == 1:
        return local_bD
    gathered = local_bD.new_empty(_world_size() * len(local_bD), local_bD.shape[1])
    dist.all_gather_into_tensor(gathered, local_bD.contiguous())
    return gathered


def _scatter_sum(gradient_ND: Tensor) -> Tensor:
    """Sum over ranks and return the rows of this rank's features, (b, D)."""
    if _world_size() == 1:
        return gradient_ND
    local_bD = gradient_ND.new_empty(len(gradient_ND) // _world_size(), gradient_ND.shape[1])
    dist.reduce_scatter_tensor(local_bD, gradient_ND)
    return local_bD
