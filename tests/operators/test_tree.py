from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from heatbath.operators import (
    Dense,
    Diagonal,
    Kronecker,
    Shifted,
    from_plain,
    map_tensors,
    nodes_of,
    same_structure,
    select,
    to_plain,
    tree,
)


@tree
@dataclass(frozen=True, eq=False)
class Everything:
    """A tree with every kind of leaf."""

    tensor: torch.Tensor
    nested: Any
    number: float
    name: str
    flag: bool
    nothing: None
    several: tuple
    named: dict


def everything(value: float = 1.0) -> Everything:
    t = torch.full((2, 3), value)
    return Everything(t, Dense(torch.eye(2) * value), 1.5, "name", True, None, (t, 2, "x"), {"a": t, "b": Diagonal(t)})


def tensors(value) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(lambda t: found.append(t) or t, value)
    return found


def test_map_tensors_visits_each_tensor_and_leaves_the_rest():
    result = map_tensors(lambda a, b: a + b, everything(1.0), everything(2.0))
    assert len(tensors(result)) == 5
    assert all(torch.equal(got, 3 * one) for got, one in zip(tensors(result), tensors(everything()), strict=True))
    assert (result.number, result.name, result.flag, result.nothing, result.several[1:]) == (1.5, "name", True, None, (2, "x"))


def test_plain_form_survives_a_weights_only_checkpoint():
    file = io.BytesIO()
    torch.save(to_plain(everything()), file)
    file.seek(0)
    restored = from_plain(torch.load(file, weights_only=True))
    assert same_structure(restored, everything())
    assert all(torch.equal(a, b) for a, b in zip(tensors(restored), tensors(everything()), strict=True))
    assert (restored.number, restored.name, restored.flag, restored.several[1:]) == (1.5, "name", True, (2, "x"))


def test_a_dict_named_like_a_tag_is_still_a_dict():
    value = {"tuple": torch.ones(1), "tree": {"dict": 1}}
    assert from_plain(to_plain(value)) == value


def test_select_takes_members_of_a_stack_one_by_one():
    a = Kronecker(Dense(torch.ones(3, 2, 2)), Diagonal(torch.ones(3, 4)))
    b = map_tensors(torch.zeros_like, a)
    mixed = select(torch.tensor([True, False, True]), a, b)
    assert mixed.left.matrix[:, 0, 0].tolist() == [1, 0, 1]
    assert mixed.right.diagonal[:, 0].tolist() == [1, 0, 1]


def test_select_of_trees_that_cannot_be_mixed_takes_the_chosen():
    chosen = Dense(torch.ones(1, 2, 2))
    assert select(torch.tensor([False]), chosen, Dense(torch.zeros(1, 3, 3))) is chosen
    assert select(torch.tensor([False]), chosen, Diagonal(torch.zeros(1, 2))) is chosen


@pytest.mark.parametrize(
    "a,b",
    [
        (Dense(torch.eye(2)), Diagonal(torch.ones(2))),
        (Dense(torch.eye(2)), Dense(torch.eye(3))),
        ((torch.ones(1),), (torch.ones(1), torch.ones(1))),
        ({"a": torch.ones(1)}, {"b": torch.ones(1)}),
        (torch.ones(1), None),
        ((1, torch.ones(1)), (1, torch.ones(2))),
    ],
)
def test_trees_that_differ_have_different_structure(a, b):
    assert same_structure(a, a)
    assert not same_structure(a, b)


def test_two_classes_of_one_name_are_refused():
    other = type("Dense", (), {"__module__": "heatbath.elsewhere"})
    with pytest.raises(ValueError, match=r"two tree classes are named heatbath\.Dense: heatbath\.operators\.dense\.Dense and"):
        tree(other)


def test_a_class_of_another_package_may_have_one_of_our_names():
    mine = dataclass(type("Dense", (), {"__annotations__": {"rows": torch.Tensor}, "__module__": "mylab.states"}))
    restored = from_plain(to_plain((tree(mine)(torch.ones(2)), Dense(torch.eye(2)))))
    assert (type(restored[0]), type(restored[1])) == (mine, Dense)


def test_a_renamed_class_and_field_are_read_from_old_checkpoints():
    @tree(aliases=["tests.Squashed"], renamed={"carry": "initial"})
    @dataclass(frozen=True)
    class Flattened:
        initial: torch.Tensor

    old = {"tree": "tests.Squashed", "fields": {"carry": torch.ones(3)}}
    assert torch.equal(from_plain(old).initial, torch.ones(3))
    new = to_plain(from_plain(old))
    assert (new["tree"], list(new["fields"])) == ("tests.Flattened", ["initial"])


def test_names_without_a_package_are_those_of_the_first_version():
    assert isinstance(from_plain({"tree": "Dense", "fields": {"matrix": torch.eye(2)}}), Dense)


def test_a_field_this_version_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"the checkpoint's 'heatbath\.Dense' has colour, which this version does not know"):
        from_plain({"tree": "heatbath.Dense", "fields": {"matrix": torch.eye(2), "colour": 1}})


def test_what_cannot_be_saved_is_refused():
    with pytest.raises(TypeError, match="a set cannot be part of a checkpoint; register its class with @tree"):
        to_plain((1, {2}))


def test_a_class_this_version_does_not_know_is_refused():
    with pytest.raises(ValueError, match="the checkpoint holds a 'Hologram', which this version of heatbath does not know"):
        from_plain({"tree": "Hologram", "fields": {}})


def test_select_of_a_single_matrix():
    one, other = (Dense(scale * torch.eye(2)) for scale in (1.0, 2.0))
    assert torch.equal(select(torch.tensor(False), one, other).matrix, other.matrix)
    assert select(torch.tensor(True), torch.tensor(1), torch.tensor(2)) == 1


def test_nodes_of_a_class_are_found_wherever_they_are():
    inner = Dense(torch.eye(2))
    found = list(nodes_of({"a": (Kronecker(inner, inner), None), "b": torch.eye(2)}, Dense))
    assert [node is inner for node in found] == [True, True]


def test_one_member_without_a_stack_is_selected_whole():
    first, second = Shifted(Dense(torch.eye(2)), torch.tensor(1.0)), Shifted(Dense(2 * torch.eye(2)), torch.tensor(2.0))
    chosen = select(torch.tensor(False), first, second)
    assert torch.equal(chosen.amount, second.amount)
    assert torch.equal(chosen.dense(), second.dense())
