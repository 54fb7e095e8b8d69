"""A small copy descriptor: residual convolutions, GeM pooling, one linear layer, unit length.

Fully convolutional, so it trains on small squares and describes larger ones. Its input is bytes; it normalises the mean
colour and the contrast of each image itself.
"""

from itertools import pairwise

import torch
import torch.nn.functional as functional
from torch import nn

WIDTHS = (32, 64, 128, 192)
LAST_WIDTH = 512
DIMENSIONS = 256


class Convolution(nn.Sequential):
    """A convolution and its batch norm."""

    def __init__(self, before: int, after: int, kernel: int = 3, stride: int = 1) -> None:
        convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(after))
        self.stride, self.padding = stride, kernel // 2

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weight and the bias of the single convolution that replaces both at inference."""
        convolution, norm = self
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class Residual(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Convolution(width, width)
        self.second = Convolution(width, width)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps of the same shape."""
        return functional.relu(maps + self.second(functional.relu(self.first(maps))))


class CopyNetwork(nn.Module):
    """uint8 `(n, side, side, 3)` RGB to unit float32 vectors `(n, dimensions)`; the side is a multiple of 16 pixels."""

    def __init__(
        self, widths: tuple[int, ...] = WIDTHS, last_width: int = LAST_WIDTH, dimensions: int = DIMENSIONS
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [Convolution(3, widths[0], kernel=5, stride=2), nn.ReLU(inplace=True)]
        for before, width in pairwise(widths):
            layers += [Convolution(before, width, stride=2), nn.ReLU(inplace=True), Residual(width)]
        layers += [Convolution(widths[-1], last_width, kernel=1), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.gem_power = nn.Parameter(torch.tensor(3.0))
        self.projection = nn.Linear(last_width, dimensions, bias=False)
        self.centre = nn.BatchNorm1d(dimensions, affine=False)  # so that strangers have a cosine of about 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the unit vectors of a batch."""
        planes = images.permute(0, 3, 1, 2).float()
        planes = planes - planes.mean((2, 3), keepdim=True)
        contrast = planes.square().mean((1, 2, 3), keepdim=True).sqrt()
        planes = (planes / (contrast + 4.0)).contiguous(memory_format=torch.channels_last)
        maps = self.features(planes).float().clamp(min=1e-5)
        pooled = maps.pow(self.gem_power).mean((2, 3)).pow(1.0 / self.gem_power)
        return functional.normalize(self.centre(self.projection(pooled).float()))

    def centring(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the projection is multiplied by and centred at, at inference; both `(dimensions,)`."""
        assert self.centre.running_var is not None
        assert self.centre.running_mean is not None
        return (self.centre.running_var + self.centre.eps).rsqrt(), self.centre.running_mean
