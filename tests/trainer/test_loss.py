"""The objectives against the paper's pseudocode, open_clip's losses, and themselves across process counts."""

import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss, SigLipLoss
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.loss import contrastive_loss, whole_loss

torch.set_num_threads(1)


def _features(count: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, count, width, generator=generator, dtype=torch.float64)
    image, text = torch.nn.functional.normalize(both, dim=-1)
    return image, text


def _figure_3(image: np.ndarray, text: np.ndarray, t: float) -> float:
    """CLIP figure 3, written as loops: a row and a column softmax for each pair, averaged."""
    count = len(image)
    logits = [[float(image[i] @ text[j]) * math.exp(t) for j in range(count)] for i in range(count)]
    loss_i = loss_t = 0.0
    for k in range(count):
        loss_i -= logits[k][k] - math.log(sum(math.exp(logits[k][j]) for j in range(count)))
        loss_t -= logits[k][k] - math.log(sum(math.exp(logits[i][k]) for i in range(count)))
    return (loss_i / count + loss_t / count) / 2


@given(count=st.integers(1, 9), width=st.integers(1, 5), max_logits=st.integers(1, 100), t=st.floats(-1, 4.6))
@settings(max_examples=40, deadline=None)
def test_infonce_is_figure_3_of_the_paper_whatever_the_slices(count: int, width: int, max_logits: int, t: float):
    image, text = _features(count, width, seed=count)
    loss = contrastive_loss(image, text, torch.tensor(t, dtype=torch.float64).exp(), max_logits=max_logits)
    assert loss.item() == pytest.approx(_figure_3(image.numpy(), text.numpy(), t), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("max_logits", [1, 13, 10_000])
@pytest.mark.parametrize("objective", ["infonce", "siglip"])
def test_gradients_are_those_of_open_clip(objective: str, max_logits: int):
    peer = ClipLoss() if objective == "infonce" else SigLipLoss()

    def gradients(loss: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        inputs = [*_features(7, 5, seed=3), torch.tensor(2.5, dtype=torch.float64), torch.tensor(-3.0).double()]
        leaves = [value.clone().requires_grad_() for value in inputs[: 3 if objective == "infonce" else 4]]
        value = loss(*leaves)
        (3 * value).backward()
        return (value, *(leaf.grad for leaf in leaves))

    ours = gradients(lambda *a: contrastive_loss(*a, objective=objective, max_logits=max_logits))
    for own, theirs in zip(ours, gradients(peer), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-12)


class _LargeTensors(TorchDispatchMode):
    """Counts the tensors of at least `size` numbers that are there at a time."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.most = size, 0
        self._made: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() >= self.size:
            self._made.append(weakref.ref(result))
        self.most = max(self.most, len({made.data_ptr() for ref in self._made if (made := ref()) is not None}))
        return result


@pytest.mark.parametrize(("objective", "slices"), [("infonce", 1), ("siglip", 2)])
def test_logits_are_held_a_slice_at_a_time(objective: str, slices: int):
    image, text = (side.requires_grad_() for side in _features(256, 4, seed=1))
    scale, bias = torch.tensor(50.0).double(), torch.tensor(-1.0).double()
    with _LargeTensors(2**13) as held:
        contrastive_loss(image, text, scale, bias, objective=objective, max_logits=2**13)  # type: ignore[arg-type]
    assert held.most == slices


def test_half_precision_features_are_compared_in_float32():
    image, text = (side.bfloat16().requires_grad_() for side in _features(6, 4, seed=1))
    loss = contrastive_loss(image, text, torch.tensor(50.0))
    loss.backward()
    assert loss.dtype == torch.float32
    assert image.grad is not None
    assert image.grad.dtype == torch.bfloat16


def _one_rank(rank: int, world_size: int, folder: str, objective: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    image, text = _features(8, 6, seed=11)
    tower = torch.nn.Linear(6, 4).double()
    with torch.no_grad():
        tower.weight.copy_(torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6))
        tower.bias.zero_()
    t = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    own = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    features = [torch.nn.functional.normalize(tower(side[own]), dim=-1) for side in (image, text)]
    loss = contrastive_loss(*features, t.exp(), bias, objective=objective, max_logits=16)  # type: ignore[arg-type]
    loss.backward()
    results = [loss.detach(), tower.weight.grad, t.grad, bias.grad]
    for value in results:
        dist.all_reduce(value)  # what DDP does with gradients
        value /= world_size
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("objective", ["infonce", "siglip"])
def test_loss_and_gradients_are_equal_on_1_2_and_4_processes(tmp_path: Path, objective: str):
    runs = []
    for world_size in (1, 2, 4):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        mp.start_processes(_one_rank, (world_size, str(folder), objective), nprocs=world_size, start_method="fork")
        runs.append(torch.load(folder / "results.pt"))
    for run in runs[1:]:
        for value, expected in zip(run, runs[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-13)


def _rounded_to_tf32(values: torch.Tensor) -> torch.Tensor:
    """Round to 10 bits of mantissa, to nearest even, as tensor cores read their factors."""
    bits = values.view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("width", [512, 1024])
def test_what_tf32_does_to_logits_is_as_stated(width: int):
    image, text = (side.float() for side in _features(1_000, width, seed=0))
    text = torch.nn.functional.normalize(image + text, dim=-1)  # pairs are near each other
    exact = 100 * image.double() @ text.double().T
    error = (100 * (_rounded_to_tf32(image) @ _rounded_to_tf32(text).T) - exact).abs()
    assert error.max() < 0.01
    assert error.mean() < 0.002
    half = (100 * (image.bfloat16().float() @ text.bfloat16().float().T) - exact).abs()
    assert error.max() < half.max() / 4  # what bf16 features have lost before


@pytest.mark.parametrize("objective", ["infonce", "siglip"])
def test_the_loss_of_whole_features_is_that_of_training(objective: Any):
    image, text = _features(24, 8, seed=2)
    scale, bias = torch.tensor(20.0, dtype=torch.float64), torch.tensor(-4.0, dtype=torch.float64)
    own = bias if objective == "siglip" else None
    expected = contrastive_loss(image, text, scale, own, objective=objective)
    assert whole_loss(image, text, scale, own, objective) == pytest.approx(float(expected), rel=1e-12)
    before = torch.get_float32_matmul_precision()
    contrastive_loss(image, text, scale, own, objective=objective, tf32=True)
    assert torch.get_float32_matmul_precision() == before
