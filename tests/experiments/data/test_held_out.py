from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heatbath.experiments.data import Dataset, Source, Subset, Tensors, held_out
from heatbath.experiments.experiment import on_held_out_data
from tests.experiments import tasks


class Forbidden:
    """A test split that must not be looked at."""

    def __len__(self) -> int:
        raise AssertionError("the test split was counted")

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        raise AssertionError("the test split was read")

    def to(self, device: torch.device) -> Forbidden:
        raise AssertionError("the test split was moved")


def numbered(count: int) -> Source:
    train = Tensors((torch.arange(count),))
    return Source("numbers", "a note", lambda: Dataset("really", "from here", train, Forbidden()))


def examples(split: Subset) -> list[int]:
    return split.batch(torch.arange(len(split)))[0].tolist()


def test_held_out_and_remaining_examples_make_up_the_training_split_and_nothing_else() -> None:
    dataset = held_out(numbered(95)).load()
    assert (len(dataset.train), len(dataset.test)) == (85, 10)
    assert sorted(examples(dataset.train) + examples(dataset.test)) == list(range(95))


def test_the_same_examples_are_held_out_each_time_and_not_in_their_order() -> None:
    first, second = (examples(held_out(numbered(200)).load().test) for _ in range(2))
    assert first == second
    assert first != list(range(0, 200, 10))


def test_a_validation_part_of_the_set_is_measured_on_and_all_training_examples_are_trained_on() -> None:
    train, validation = Tensors((torch.arange(5),)), Tensors((torch.arange(5, 8),))
    dataset = held_out(Source("set", "", lambda: Dataset("set", "here", train, Forbidden(), validation))).load()
    assert dataset.train is train
    assert dataset.test is validation
    assert dataset.source == "here; measured on the validation part of the set; the test split is not used"


def test_nothing_can_be_chosen_on_random_numbers() -> None:
    with pytest.raises(ValueError, match="nothing can be chosen on noise, which is random numbers of the right shapes"):
        held_out(Source("noise", "", numbered(20).load, shapes_only=True))


def test_the_source_says_what_is_measured_on() -> None:
    source = held_out(numbered(20))
    dataset = source.load()
    assert (source.name, source.note, dataset.name) == ("numbers", "a note", "really")
    assert dataset.source.startswith("from here; measured on a tenth of the training examples, held out")


def test_too_few_examples_to_hold_some_out_are_refused() -> None:
    with pytest.raises(ValueError, match="really has 9 training examples, too few to hold some out: at least 10 are needed"):
        held_out(numbered(9)).load()


def test_a_subset_renumbers_the_examples_of_a_split() -> None:
    whole = Tensors((torch.arange(12.0).reshape(6, 2), torch.arange(6)))
    inputs, labels = Subset(whole, torch.tensor([5, 2, 0])).to(torch.device("cpu")).batch(torch.tensor([1, 0]))
    assert labels.tolist() == [2, 5]
    assert inputs.tolist() == [[4.0, 5.0], [10.0, 11.0]]


def test_a_task_on_held_out_data_says_so_in_its_metrics_and_target() -> None:
    task = on_held_out_data(tasks.experiment())
    assert list(task.metrics) == ["held-out accuracy", "held-out loss"]
    assert task.target.describe() == "held-out accuracy ≥ 0.7"
    assert len(task.source.load().test) == 10
