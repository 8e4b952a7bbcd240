from __future__ import annotations

import torch

from heatbath.experiments.data import Tensors, digits
from heatbath.experiments.data.digits import load_upscaled


def tensors(split: object) -> tuple[torch.Tensor, ...]:
    assert isinstance(split, Tensors)
    return split.tensors


def test_digits_are_those_of_scikit_learn_and_no_image_is_in_both_halves() -> None:
    from sklearn.datasets import load_digits

    dataset = digits.load()
    images = torch.cat([tensors(dataset.train)[0], tensors(dataset.test)[0]])
    truth = torch.tensor(load_digits().images, dtype=torch.float32) / 16
    assert len(dataset.train) + len(dataset.test) == len(truth) == 1797
    assert len(dataset.test) == 359
    assert sorted(images.flatten(1).sum(1).tolist()) == sorted(truth.flatten(1).sum(1).tolist())
    assert 0.0 <= float(images.min()) <= float(images.max()) <= 1.0


def test_both_halves_hold_every_digit_alike() -> None:
    dataset = digits.load()
    train, test = (torch.bincount(tensors(split)[1], minlength=10) for split in (dataset.train, dataset.test))
    assert ((test - (train + test) / 5).abs() < 1).all()


def test_enlarged_digits_say_that_they_stand_in_and_why() -> None:
    dataset = load_upscaled(28, why="the moon was full")
    assert dataset.name == "digits-upscaled"
    assert dataset.source == "ships with scikit-learn, 8×8 enlarged to 28×28; a stand-in, because the moon was full"
    assert tensors(dataset.train)[0].shape[1:] == (1, 28, 28)
    assert "digits-upscaled, 1,438 training and 359 test examples" in dataset.describe()
