from __future__ import annotations

import torch

from heatbath.experiments.data import imagenet_shapes
from heatbath.experiments.data.shapes import Shapes


def test_a_batch_depends_on_the_numbers_of_its_examples_alone() -> None:
    split = Shapes(1000, (3, 8, 8), 10)
    before = torch.get_rng_state()
    inputs, labels = split.batch(torch.tensor([5, 900, 3]))
    again, _ = split.to(torch.device("cpu")).batch(torch.tensor([5, 900, 3]))
    other, _ = split.batch(torch.tensor([5, 900, 4]))
    assert (inputs.shape, labels.shape, labels.dtype) == ((3, 3, 8, 8), (3,), torch.int64)
    assert torch.equal(inputs, again)
    assert not torch.equal(inputs, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_are_below_the_number_of_classes_and_all_occur() -> None:
    _, labels = Shapes(1000, (1,), 10).batch(torch.arange(500))  # one of ten is missing with probability below 10 · 0.9^500
    assert sorted(labels.unique().tolist()) == list(range(10))


def test_imagenet_is_as_long_as_the_real_one_and_holds_no_memory() -> None:
    dataset = imagenet_shapes.load()
    assert len(dataset.train) == 1_281_167
    assert dataset.train.batch(torch.arange(2))[0].shape == (2, 3, 224, 224)
    assert "losses and metrics mean nothing" in dataset.source
