"""What can go wrong around the optimizer: said clearly, counted, and nothing lost."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.machines import Machine, MachineSpec, with_bits
from heatbath.optim import KFAC, Policy, Unclipped
from heatbath.solvers import Cholesky, Factorwise, Guarded, Outcome, Solver, ThermodynamicInverse, ThermodynamicSolve
from tests.laws import Scale, batches, network, noise, parameters_of, train
from tests.zoo import MACHINES, PLAIN, TAU

COARSE = Machine(with_bits(MACHINES["tngd-2024"], matrix=4, drive=8, read=8))


# --- at the door -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    [list(network().parameters()), network().parameters(), {"params": []}, None],
    ids=lambda value: type(value).__name__,
)
def test_parameters_in_place_of_the_model_are_refused(what):
    with pytest.raises(TypeError, match=r"KFAC takes the model itself, not its parameters: expected nn\.Module, got"):
        KFAC(what)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)], ids=["none", "frozen"])
def test_a_model_without_trainable_parameters_is_refused(model):
    with pytest.raises(ValueError, match="the model has no parameter that requires gradients: nothing to train"):
        KFAC(model)


def test_a_model_without_supported_layers_is_trained_and_it_is_said():
    model = nn.Sequential(Scale(3), nn.Bilinear(1, 1, 1))
    with pytest.warns(UserWarning, match="no layer of this model has a curvature rule: AdamW trains all of it"):
        optimizer = KFAC(model)
    before = parameters_of(model)
    (model[0](torch.ones(2, 3)).square().sum() + model[1](torch.ones(2, 1), torch.ones(2, 1)).sum()).backward()
    optimizer.step()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert optimizer.coverage().count("kfac") == 0


def test_a_parameter_of_another_model_is_refused():
    with pytest.raises(ValueError, match="a parameter group holds a parameter that is not one of the model's"):
        KFAC(network(), [{"params": nn.Linear(2, 2).parameters()}])


def test_a_parameter_of_another_model_is_refused_in_a_later_group_too():
    optimizer = KFAC(network())
    with pytest.raises(ValueError, match="a parameter group holds a parameter that is not one of the model's"):
        optimizer.add_param_group({"params": nn.Linear(2, 2).parameters()})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", ["lr", "damping", "weight_decay"])
@pytest.mark.parametrize("value", [-1e-3, float("nan")])
def test_options_below_zero_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got {value}"):
        KFAC(network(), **{name: value})
    model = network()
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got {value}"):
        KFAC(model, [{"params": model[0].parameters(), name: value}])


@pytest.mark.parametrize("momentum", [1.0, -0.1, float("nan")])
def test_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match=rf"momentum must lie in \[0, 1\), got {momentum}"):
        KFAC(network(), momentum=momentum)


def test_a_machine_that_is_too_small_is_refused_and_nothing_moves():
    model = network()
    optimizer = KFAC(model, solver=ThermodynamicSolve(Machine(MachineSpec(name="tiny", tau=TAU, cells=3))))
    before = parameters_of(model)
    x, y = batches(1)[0]
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(ValueError, match="a matrix of size 5 needs 5 cells, machine 'tiny' has 3"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


# --- at each step ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["0.weight", "2.scale", "3.bias"])
def test_a_nan_in_one_gradient_stops_the_whole_step(where):
    model = network()
    optimizer = KFAC(model, weight_decay=0.1)
    train(model, optimizer, batches(2))
    before = parameters_of(model)
    optimizer.zero_grad()
    x, y = batches(3)[2]
    F.cross_entropy(model(x), y).backward()
    model.get_parameter(where).grad.view(-1)[0] = torch.nan
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert optimizer.report()["skipped_steps"] == 1


def test_an_input_that_is_not_finite_does_not_poison_the_averages():
    """An inf among the activations makes A infinite: this batch counts for nothing."""
    model = network()
    optimizer = KFAC(model, policy=PLAIN)
    train(model, optimizer, batches(2))
    averages = [(s.mean.left.matrix.clone(), s.mean.right.matrix.clone()) for s in optimizer.stacks]
    optimizer.zero_grad()
    x, y = batches(3)[2]
    x[0, 0] = torch.inf
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    first = next(s for s in optimizer.stacks if s.names == ["0[0]"])
    index = optimizer.stacks.index(first)
    assert torch.equal(first.mean.right.matrix, averages[index][1])
    assert optimizer.report()["skipped_steps"] == 1


def test_a_run_of_bad_batches_is_survived():
    model = network()
    optimizer = KFAC(model)

    def run():
        for index, (x, y) in enumerate(batches(12)):
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) * (torch.nan if 2 <= index < 9 else 1)).backward()
            optimizer.step()

    with pytest.warns(UserWarning, match="5 steps in a row were skipped"):
        run()
    assert optimizer.report()["skipped_steps"] == 7
    assert all(torch.isfinite(p).all() for p in model.parameters())


# --- matrices that rounding made indefinite ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [ThermodynamicInverse, ThermodynamicSolve])
def test_a_coarse_machine_is_noticed_redamped_counted_and_trains(method):
    """Four bits and little damping: every refresh meets matrices that the machine holds as indefinite ones."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    for index, parameter in enumerate(model.parameters()):
        parameter.data.copy_(0.5 * noise(*parameter.shape, seed=index))
    optimizer = KFAC(model, damping=1e-5, solver=method(COARSE), generator=generator)
    ((x, y),) = batches(1, examples=32)
    losses = train(model, optimizer, [(x, y)] * 25)
    report = optimizer.report()
    assert report.get("prepare.redamped", 0) + report.get("prepare.fell_back", 0) > 0
    assert "prepare.indefinite" not in report
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(p).all() for p in model.parameters())


@dataclass(frozen=True)
class Fails(Solver):
    """Cholesky that calls every member indefinite at the refreshes listed in `when`."""

    when: tuple[int, ...]
    count: list[int]
    inner: Cholesky = field(default_factory=Cholesky)

    def prepare(self, operator, *, previous=None, generator=None):
        state, work = self.inner.prepare(operator)
        self.count[0] += 1
        if self.count[0] - 1 in self.when:
            state = replace(state, outcome=torch.full_like(state.outcome, Outcome.INDEFINITE.code))
        return state, work

    def solve(self, state, rhs, *, guess=None, generator=None):
        return self.inner.solve(state, rhs)

    def outcome(self, state):
        return state.outcome


def one_layer(when: tuple[int, ...], steps: int) -> tuple[list[Tensor], list[float], KFAC]:
    """Weights after each step, the damping boost, and the optimizer. Each refresh prepares two sides."""
    model = nn.Linear(3, 2).double()
    for index, parameter in enumerate(model.parameters()):
        parameter.data.copy_(noise(*parameter.shape, seed=index))
    optimizer = KFAC(model, lr=0.1, momentum=0.0, solver=Factorwise(Fails(when, [0])), policy=replace(PLAIN, decay=0.0))
    weights, boosts = [], []
    for step in range(steps):
        optimizer.zero_grad()
        model(noise(6, 3, seed=step)).sin().sum(1).mean().backward()
        optimizer.step()
        weights.append(model.weight.detach().clone())
        boosts.append(optimizer.stacks[0].boost.item())
    return weights, boosts, optimizer


def test_a_failed_refresh_keeps_the_last_state_and_raises_the_damping_for_a_while():
    plain, _, _ = one_layer((), 2)
    weights, boosts, optimizer = one_layer((2,), 7)  # sides 2 and 3 are the second refresh
    assert torch.equal(weights[0], plain[0])
    assert not torch.equal(weights[1], weights[0])  # moved, by the first inverse
    assert not torch.equal(weights[1], plain[1])
    assert boosts == [1.0, 10.0, 5.0, 2.5, 1.25, 1.0, 1.0]
    report = optimizer.report()
    assert (report["prepare.solved"], report["prepare.indefinite"]) == (6, 1)


def test_the_raised_damping_is_what_the_next_refresh_solves_with():
    """The step after a failure is that of an optimizer with ten times the damping, from the same weights."""
    raised, _, _ = one_layer((2,), 3)
    _, _, optimizer = one_layer((2,), 2)
    model = copy.deepcopy(optimizer.model)
    other = KFAC(model, lr=0.1, damping=1e-2, momentum=0.0, policy=replace(PLAIN, decay=0.0))
    model.zero_grad()
    model(noise(6, 3, seed=2)).sin().sum(1).mean().backward()
    other.step()
    torch.testing.assert_close(model.weight.detach(), raised[2], rtol=1e-12, atol=1e-14)


def test_a_first_refresh_that_fails_moves_nothing_until_one_succeeds():
    weights, boosts, _ = one_layer((0, 2), 3)
    start = noise(2, 3, seed=0)
    assert torch.equal(weights[0], start)
    assert torch.equal(weights[1], start)
    assert not torch.equal(weights[2], start)
    assert boosts == [10.0, 100.0, 50.0]


def test_a_guarded_solver_never_needs_the_boost():
    model = network()
    optimizer = KFAC(model, damping=1e-5, solver=Guarded(ThermodynamicSolve(COARSE)), policy=Policy(trust=Unclipped()), lr=1e-3)
    train(model, optimizer, batches(5))
    assert all((stack.boost == 1).all() for stack in optimizer.stacks)


def test_damping_of_zero_on_singular_factors_moves_nothing_and_says_so():
    """Three inputs, one example: A and B have rank one, and no damping repairs them."""
    model = nn.Linear(3, 2).double()
    optimizer = KFAC(model, damping=0.0, policy=PLAIN)
    before = parameters_of(model)
    model(noise(1, 3)).sin().sum().backward()
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert optimizer.report()["prepare.indefinite"] == 1
