from __future__ import annotations

import pytest
import torch

from heatbath.operators import Diagonal
from heatbath.solvers import Outcome, usable
from heatbath.solvers.base import outcome_codes


def test_codes_are_positions_and_stay_what_checkpoints_hold():
    assert [o.code for o in Outcome] == list(range(8))
    names = ["SOLVED", "INDEFINITE", "NONFINITE", "INACCURATE", "LATE", "REDAMPED", "FELL_BACK", "RETRIED"]
    assert [o.name for o in Outcome] == names


def test_an_outcome_is_usable_if_it_was_solved_one_way_or_another():
    codes = torch.arange(8, dtype=torch.int8)
    assert usable(codes).tolist() == [o.usable for o in Outcome]
    assert {o.name for o in Outcome if o.usable} == {"SOLVED", "REDAMPED", "FELL_BACK", "RETRIED"}


@pytest.mark.parametrize("outcome", Outcome)
def test_the_value_of_an_outcome_is_a_message(outcome):
    assert " " in outcome.value or outcome is Outcome.SOLVED


def test_outcome_codes_have_the_shape_of_the_stack():
    codes = outcome_codes(Diagonal(torch.ones(2, 3, 4)), torch.device("cpu"), Outcome.LATE)
    assert codes.shape == (2, 3)
    assert codes.dtype == torch.int8
    assert (codes == Outcome.LATE.code).all()
