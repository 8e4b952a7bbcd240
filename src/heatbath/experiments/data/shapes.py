"""Random numbers in the shape of a data set that is too large, or not free, to carry along.

A training step costs the same on them, which is all that a prediction of time and energy needs. Nothing can be learned, tuned
or compared on them: `Source.shapes_only` says so to code, the name and the source of the loaded set say so in every record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from heatbath.experiments.data.base import Dataset, Source

IMAGENET_TRAIN = 1_281_167  # images of ILSVRC-2012 (Russakovsky et al. 2015, arXiv 1409.0575)
TEST = 16  # enough to run the metrics, which mean nothing here


@dataclass(frozen=True, eq=False)
class Shapes:
    """A split of random examples, made when they are fetched; a batch depends on the numbers of its examples alone.

    Args:
        count: how many examples it pretends to hold.
        shape: of an input.
        classes: labels are uniform below it.
        device: where batches are made.
    """

    count: int
    shape: tuple[int, ...]
    classes: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        generator = torch.Generator(self.device).manual_seed(int(indices.sum()))
        inputs = torch.randn(len(indices), *self.shape, generator=generator, device=self.device)
        return inputs, torch.randint(self.classes, (len(indices),), generator=generator, device=self.device)

    def to(self, device: torch.device) -> Shapes:
        return Shapes(self.count, self.shape, self.classes, device)


def load_imagenet_shapes() -> Dataset:
    """Inputs `[B, 3, 224, 224]` and labels below 1000, standard normal and uniform."""
    source = "random numbers in ImageNet's shape: for predictions of time and energy only, losses and metrics mean nothing"
    return Dataset("imagenet-shapes", source, Shapes(IMAGENET_TRAIN, (3, 224, 224), 1000), Shapes(TEST, (3, 224, 224), 1000))


imagenet_shapes = Source(
    "imagenet-shapes",
    "no data: random numbers in ImageNet's shape, 224×224 and 1,000 classes, for predictions of time and energy only",
    load_imagenet_shapes,
    shapes_only=True,
)
