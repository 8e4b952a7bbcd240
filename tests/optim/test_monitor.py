"""Warnings about steps: said once, in time, and without waiting for a device."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.curvature import ExactFisher, Gaussian
from heatbath.optim import KFAC, NGD, KLClip, Policy, preconditioned
from heatbath.optim.monitor import StepMonitor
from tests.laws import noise
from tests.optim.test_no_sync import NoReads


def steps(optimizer, model, count, factor=1.0):
    """What was warned about at which step, and the steps."""
    said = []
    for index in range(count):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.zero_grad()
            (factor * F.mse_loss(model(noise(8, 3, seed=index).float()), noise(8, 2, seed=index + 99).float())).backward()
            optimizer.step()
        said += [(index + 1, str(w.message)) for w in caught]
    return said


def test_twenty_clipped_steps_in_a_row_are_said_to_make_lr_inert_once():
    model = nn.Linear(3, 2)
    said = steps(KFAC(model, lr=0.3, policy=Policy(trust=KLClip(1e-2))), model, 45)
    assert [step for step, _ in said] == [20]
    assert "lr has no effect" in said[0][1]


def test_steps_shortened_to_next_to_nothing_name_the_reduction():
    model = nn.Linear(3, 2)
    said = steps(KFAC(model, lr=1.0, policy=Policy(trust=KLClip(1e-9))), model, 45)
    assert [step for step, _ in said] == [20, 20]
    assert "Policy(reduction=...)" in said[1][1]


def test_a_step_in_full_between_shortened_ones_starts_the_count_anew():
    monitor = StepMonitor()
    for index in range(60):
        monitor.add(torch.tensor(1.0 if index % 19 == 18 else 0.5), torch.tensor(True))  # a warning would be an error


@pytest.mark.parametrize("make", [KFAC, lambda model: preconditioned_sgd(model)], ids=["KFAC", "preconditioned"])
@pytest.mark.parametrize("count,warned", [(4, []), (8, [5])])
def test_five_steps_in_a_row_that_are_not_finite_are_named(make, count, warned):
    model = nn.Linear(3, 2)
    said = steps(make(model), model, count, factor=float("nan"))
    assert [step for step, message in said if "not finite" in message] == warned


def preconditioned_sgd(model):
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    sgd.handle = preconditioned(sgd, model)
    return sgd


def test_the_joint_step_is_watched_too():
    model = nn.Linear(3, 2)
    optimizer = NGD(model, fisher=ExactFisher(Gaussian()))
    said = []
    for index in range(6):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.zero_grad()
            (float("nan") * F.mse_loss(optimizer.observe(model(noise(8, 3).float())), noise(8, 2).float())).backward()
            optimizer.step()
        said += [(index + 1, str(w.message)) for w in caught]
    assert [step for step, message in said if "not finite" in message] == [5]


def test_the_default_step_is_never_said_to_be_shortened():
    model = nn.Linear(3, 2)
    assert steps(KFAC(model), model, 30) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_of_16_bits_that_overflowed_are_named(dtype):
    monitor, one = StepMonitor(), torch.ones(())
    monitor.add(one, one.bool(), [torch.ones(3, dtype=dtype), torch.full((2,), torch.inf)])  # float32 is not looked at
    with pytest.warns(UserWarning, match="parameters of 16 bits are not finite"):
        monitor.add(one, one.bool(), [torch.full((2,), torch.inf, dtype=dtype)])


def test_watching_waits_for_no_device():
    monitor, one = StepMonitor(), torch.ones(())
    with NoReads():
        monitor.add(one, one.bool(), [torch.ones(3, dtype=torch.float16)])
