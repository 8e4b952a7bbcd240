from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from heatbath.curvature import Categorical, ExactFisher, Gaussian, Reduction, SampledFisher
from heatbath.machines import Machine, MachineSpec
from heatbath.optim import (
    KFAC,
    NGD,
    TNGD,
    FactoredDamping,
    Interval,
    JointPolicy,
    KLClip,
    LevenbergMarquardt,
    MatchedRMS,
    Policy,
    TNGDPolicy,
    preconditioned,
)
from heatbath.solvers import Cholesky, ConjugateGradient, Eigen, NewtonSchulz
from tests.zoo import TAU


def test_intervals_share_the_patience():
    policy = Policy(factor_every=3, refresh_every=7, patience=2)
    assert policy.factors == Interval(3, 2)
    assert policy.refresh == Interval(7, 2)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), got 1.0"),
        ({"decay": -0.1}, r"decay must lie in \[0, 1\), got -0.1"),
        ({"decay": float("nan")}, r"decay must lie in \[0, 1\), got nan"),
        ({"fallback_lr": -1.0}, "fallback_lr must be at least 0, got -1.0"),
        ({"factor_every": 0}, "an interval needs every >= 1"),
        ({"refresh_every": 0}, "an interval needs every >= 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Policy(**options)


def test_the_default_step_rule_has_no_unit():
    assert KFAC(nn.Linear(2, 2)).policy.trust == MatchedRMS()
    assert KFAC(nn.Linear(2, 2), policy=Policy(adapt=LevenbergMarquardt())).policy.trust == KLClip()
    with pytest.raises(ValueError, match="need the loss's unit: leave out trust"):
        Policy(trust=MatchedRMS(), adapt=LevenbergMarquardt())


def test_the_policy_is_fixed_when_the_optimizer_is_built():
    """Half of it would count at once and half never: another Fisher was mixed into the averages."""
    optimizer = KFAC(nn.Linear(2, 2))
    with pytest.raises(AttributeError):
        optimizer.policy = replace(optimizer.policy, fisher=SampledFisher(Categorical()))


@pytest.mark.parametrize("policy", [Policy, JointPolicy, TNGDPolicy])
@pytest.mark.parametrize("name", ["rows", "ROWS", "Examples", "sum"])
def test_a_reduction_is_known_by_its_name(policy, name):
    assert policy(reduction=name).reduction is Reduction[name.upper()]


@pytest.mark.parametrize("policy", [Policy, JointPolicy, TNGDPolicy])
def test_other_names_of_reductions_are_refused(policy):
    with pytest.raises(ValueError, match=r"reduction 'mean' is ambiguous: write 'examples' .* 'rows'"):
        policy(reduction="mean")
    with pytest.raises(ValueError, match="reduction 'none' is unknown: write 'examples'"):
        policy(reduction="none")
    with pytest.raises(TypeError, match=r"reduction cannot be of type int: write one of Reduction\."):
        policy(reduction=1)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"fisher": SampledFisher}, r"fisher must be a value, got the class SampledFisher: write a Fisher such as"),
        ({"fisher": "empirical"}, "fisher cannot be of type str"),
        ({"trust": KLClip}, r"trust must be a value, got the class KLClip: write a step rule such as KLClip\(kappa"),
        ({"trust": 0.01}, "trust cannot be of type float: write a step rule such as"),
        ({"adapt": True}, r"adapt cannot be of type bool: write LevenbergMarquardt\(\), or None"),
        ({"quadratic": Categorical()}, r"quadratic cannot be of type Categorical: write QuadraticModel\("),
        ({"damping_rule": FactoredDamping}, "damping_rule must be a value, got the class FactoredDamping"),
    ],
)
def test_values_of_another_kind_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        Policy(**options)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"trust": KLClip}, "trust must be a value, got the class KLClip"),
        ({"trust": None}, "trust cannot be of type NoneType: write a rule such as Unclipped"),
        ({"trust": MatchedRMS()}, "MatchedRMS is a step rule of KFAC: write a rule such as Unclipped"),
        ({"adapt": LevenbergMarquardt}, "adapt must be a value, got the class LevenbergMarquardt"),
        ({"output": "logits"}, "output cannot be of type str: write a function"),
    ],
)
def test_values_of_another_kind_are_refused_by_the_joint_policy_too(options, message):
    for policy in (JointPolicy, TNGDPolicy):
        with pytest.raises(TypeError, match=message):
            policy(**options)


MACHINE = Machine(MachineSpec(name="tiny", tau=TAU, cells=64))
EXACT = ExactFisher(Gaussian())


def front(model, **options):
    return preconditioned(torch.optim.SGD(model.parameters(), lr=0.1), model, **options)


@pytest.mark.parametrize(
    "make,instead",
    [
        (KFAC, "JointPolicy belongs to NGD"),
        (front, "JointPolicy belongs to NGD"),
        (partial(NGD, fisher=EXACT), "Policy belongs to KFAC"),
        (partial(TNGD, fisher=EXACT, machine=MACHINE), r"write TNGDPolicy\("),
    ],
    ids=["KFAC", "preconditioned", "NGD", "TNGD"],
)
def test_policies_of_others_are_refused(make, instead):
    others = [{"lr": 0.1}, Policy if make is KFAC or make is front else JointPolicy]
    others.append(JointPolicy() if make is KFAC or make is front else Policy())
    for policy in others:
        with pytest.raises(TypeError, match=f"policy .*{instead}"):
            make(nn.Linear(2, 2), policy=policy)


@pytest.mark.parametrize(
    "name,solver",
    [
        ("cholesky", Cholesky()),
        ("Newton-Schulz", NewtonSchulz()),
        ("newton_schulz", NewtonSchulz()),
        ("eigen", Eigen()),
        ("conjugate-gradient", ConjugateGradient()),
    ],
)
def test_a_solver_is_known_by_its_name(name, solver):
    for make in (KFAC, lambda m, **o: front(m, **o).natural):
        assert make(nn.Linear(2, 2), solver=name).solver == make(nn.Linear(2, 2), solver=solver).solver
    if name != "eigen":
        found = NGD(nn.Linear(2, 2), fisher=EXACT, solver=name).solver
        assert found == NGD(nn.Linear(2, 2), fisher=EXACT, solver=solver).solver


@pytest.mark.parametrize("make", [KFAC, front, partial(NGD, fisher=EXACT)], ids=["KFAC", "preconditioned", "NGD"])
def test_what_is_no_solver_is_refused(make):
    with pytest.raises(ValueError, match="solver 'lu' is unknown: use cholesky, conjugate-gradient"):
        make(nn.Linear(2, 2), solver="lu")
    with pytest.raises(TypeError, match=r"solver must be a value, got the class Cholesky: write Cholesky\("):
        make(nn.Linear(2, 2), solver=Cholesky)
    with pytest.raises(TypeError, match=r"solver cannot be of type Machine: .*ThermodynamicSolve\(machine\)"):
        make(nn.Linear(2, 2), solver=MACHINE)


@pytest.mark.parametrize(
    "make",
    [KFAC, partial(NGD, fisher=EXACT), partial(TNGD, fisher=EXACT, machine=MACHINE)],
    ids=["KFAC", "NGD", "TNGD"],
)
@pytest.mark.parametrize(
    "groups,what",
    [
        (lambda m: m.parameters(), "hold a Parameter"),
        (lambda m: m.named_parameters(), "hold a tuple"),
        (lambda m: {"params": list(m.parameters())}, "be of type dict"),
        (lambda m: 0.1, "be of type float"),
    ],
    ids=["parameters", "named parameters", "one group", "lr"],
)
def test_what_is_no_list_of_groups_is_refused(make, groups, what):
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=rf"groups cannot {what}: the model says which .*, KFAC\(model, lr="):
        make(model, groups(model))
    with pytest.raises(TypeError, match=r"a group has the options \['lr'\] and no 'params'"):
        make(model, [{"lr": 0.1}])
