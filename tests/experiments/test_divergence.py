from __future__ import annotations

import math

import pytest

from heatbath.experiments.divergence import WINDOW, judge


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_fatal_and_its_step_is_named(loss: float) -> None:
    judgement = judge(2.3, [7, 8, 9], [2.0, loss, 1.0], advice="lower --lr")
    assert judgement is not None
    assert judgement.fatal
    assert judgement.step == 8
    assert judgement.message == f"the loss became {loss} at step 8 (it started at 2.3): lower --lr"


def test_a_mean_above_the_start_is_a_warning() -> None:
    judgement = judge(2.0, [1, 2, 3, 4, 5, 6], [0.1, 2.1, 2.1, 1.9, 2.1, 2.1], advice="lower --lr")
    assert judgement is not None
    assert not judgement.fatal
    assert "2.06 on average over steps 2 to 6, 2 at the start: lower --lr" in judgement.message


def test_one_odd_batch_is_no_divergence() -> None:
    assert judge(2.0, [1, 2, 3, 4, 5], [1.9, 1.9, 2.3, 1.9, 1.8], advice="") is None


def test_too_few_losses_are_not_judged() -> None:
    few = WINDOW - 1
    assert judge(2.0, list(range(few)), [9.0] * few, advice="") is None
