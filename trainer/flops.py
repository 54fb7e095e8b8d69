"""How much arithmetic a step needs, and how much of a GPU's peak that is (model FLOPs utilisation, MFU)."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import TrainConfig
from trainer.model import build_model

# Dense bf16 with float32 sums, from NVIDIA's data sheets; the first name that the device's name contains.
PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12,
    "A10G": 70e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12, "V100": 125e12,
}  # fmt: skip


def flops_per_pair(config: TrainConfig) -> float:
    """Return the floating-point operations of one image-text pair, forward and backward, without any recomputation."""
    with torch.device("meta"):
        model = build_model(config.architecture, text="transformer", objective=config.objective)
        vision, text = config.architecture["vision_cfg"], config.architecture["text_cfg"]
        images = torch.empty(2, 3, vision["image_size"], vision["image_size"])
        tokens = torch.zeros(2, text["context_length"], dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            image, words, *_ = model(images, tokens)
            (image.sum() + words.sum()).backward()
    return counter.get_total_flops() / 2


def peak_flops(device: torch.device) -> float | None:
    """Return a GPU's peak in bf16, or None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS.items() if known in name), None)
