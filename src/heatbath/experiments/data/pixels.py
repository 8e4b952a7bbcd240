"""Colour images held as bytes: a quarter of the memory of floats, standardized when a batch is fetched."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pixels:
    """A split of images and labels; a batch is (images − mean) / scale, channel by channel.

    Args:
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`.
        mean: of each channel in bytes' units, `[C]`.
        scale: likewise its standard deviation, `[C]`.

    Raises:
        ValueError: another dtype, or shapes that do not fit.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], got {self.images.dtype} {tuple(self.images.shape)}")
        if len(self.labels) != len(self.images):
            raise ValueError(f"every image needs a label, got {len(self.images)} images and {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        shape = (-1, 1, 1)
        return (self.images[indices].float() - self.mean.view(shape)) / self.scale.view(shape), self.labels[indices]

    def to(self, device: torch.device) -> Pixels:
        moved = {name: getattr(self, name).to(device) for name in ("images", "labels", "mean", "scale")}
        return replace(self, **moved)


def standardized(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> tuple[Pixels, Pixels]:
    """Both halves with mean and deviation of the training images.

    Args:
        train: images uint8 `[N, C, H, W]` and labels int64 `[N]`.
        test: likewise.
    """
    channels = train[0].shape[1]
    counts = torch.stack([torch.bincount(train[0][:, c].flatten(), minlength=256) for c in range(channels)]).double()
    values, total = torch.arange(256, dtype=torch.float64), counts.sum(1)
    mean = counts @ values / total
    scale = (counts @ values.square() / total - mean.square()).clamp(min=1.0).sqrt()  # a constant channel stays finite
    halves = (Pixels(images, labels, mean.float(), scale.float()) for images, labels in (train, test))
    return next(halves), next(halves)
