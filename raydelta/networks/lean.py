"""A small segmenter that trains fast from scratch on a CPU, with dense 3×3 convolutions.

A residual encoder (He et al. 2016) of strides 2 to 16, its last stage dilated, with pooled context as in PSPNet (Zhao
et al. 2017), and an additive top-down decoder as in FPN (Lin et al. 2017) that ends at stride 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT = ((1, 1), (1, 2), (2, 4))
"""Rows and columns of the grids over which the deepest features are averaged."""


class Lean(nn.Module):
    """(N, 3, H, W) in [-1, 1] → logits (N, classes, H, W); H and W multiples of 16."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = Encoder((width, 4 * width // 3, 8 * width // 3, 16 * width // 3))
        self.decoder = Decoder(self.encoder.widths, 2 * width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.decoder(self.encoder(images)))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear")


class Encoder(nn.Module):
    """(N, 3, H, W) → features of strides 2, 4, 8 and 16, a list."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.widths = widths
        stem, first, second, last = widths
        self.stem = convolve(3, stem, stride=2)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(Residual(stem, first, stride=2), Residual(first, first)),
                nn.Sequential(Residual(first, second, stride=2), Residual(second, second)),
                nn.Sequential(Residual(second, last, stride=2), Residual(last, last, dilation=2)),
            ]
        )
        self.context = nn.ModuleList(
            nn.Sequential(GridMean(grid), nn.Conv2d(last, last // 4, 1), nn.ReLU(inplace=True)) for grid in CONTEXT
        )
        self.join = convolve(last + len(CONTEXT) * (last // 4), last, kernel=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [self.stem(images)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        deepest = features[-1]
        pooled = [F.interpolate(part(deepest), size=deepest.shape[-2:], mode="bilinear") for part in self.context]
        features[-1] = self.join(torch.cat([deepest, *pooled], 1))
        return features


class GridMean(nn.Module):
    """(N, C, H, W) → (N, C, rows, columns), the mean of each cell. As ``nn.AdaptiveAvgPool2d``, which torch cannot
    export for images of any size."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (shares(count, size, x) for count, size in zip(self.grid, x.shape[-2:], strict=True))
        return torch.einsum("nchw,ih,jw->ncij", x, rows, columns)


def shares(count: int, size: int, like: Tensor) -> Tensor:
    """How much each of ``size`` places counts in the mean of each of ``count`` cells: (count, size)."""
    cells = torch.arange(count, device=like.device)[:, None]
    places = torch.arange(size, device=like.device)
    inside = (places >= cells * size // count) & (places < ((cells + 1) * size + count - 1) // count)
    return (inside / inside.sum(1, keepdim=True)).to(like.dtype)


class Decoder(nn.Module):
    """Features of strides 2 to 16 → (N, width ÷ 2, H ÷ 2, W ÷ 2)."""

    def __init__(self, widths: tuple[int, int, int, int], width: int) -> None:
        super().__init__()
        outputs = (width // 2, width, width, width)
        self.lateral = nn.ModuleList(
            convolve(inner, outer, kernel=1, activation=False) for inner, outer in zip(widths, outputs, strict=True)
        )
        self.reduce = convolve(width, width // 2, kernel=1, activation=False)
        self.mix = nn.ModuleList(convolve(outer, outer) for outer in outputs[:-1])

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.lateral[-1](features[-1])
        for level in (2, 1, 0):
            side = self.lateral[level](features[level])
            x = F.interpolate(x if level else self.reduce(x), size=side.shape[-2:], mode="bilinear")
            x = self.mix[level](F.relu(x + side))
        return x


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = convolve(inner, outer, stride=stride, dilation=dilation)
        self.second = convolve(outer, outer, dilation=dilation, activation=False)
        same = inner == outer and stride == 1
        self.shortcut = nn.Identity() if same else convolve(inner, outer, kernel=1, stride=stride, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


def convolve(
    inner: int, outer: int, kernel: int = 3, stride: int = 1, dilation: int = 1, activation: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and, unless told otherwise, ReLU."""
    layers = [
        nn.Conv2d(inner, outer, kernel, stride, dilation * (kernel // 2), dilation, bias=False),
        nn.BatchNorm2d(outer),
    ]
    return nn.Sequential(*layers, *[nn.ReLU(inplace=True)] * activation)
