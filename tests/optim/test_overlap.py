"""Refreshes beside the next pass: used one step later, whatever the device, and with no order left to its speed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatbath.curvature.factors.formats import Sketch
from heatbath.operators import random_basis
from heatbath.optim import KFAC, KLClip, Policy, Unclipped, renewal
from heatbath.optim.beside import queue
from heatbath.solvers import Cholesky, Eigen, Guarded, NewtonSchulz, ThermodynamicInverse, WarmStarted
from tests.laws import Scale, batches, fresh, network, noise, saved_and_loaded, train
from tests.optim.reference import Reference
from tests.optim.streams import Deaf, NoRaces, PlayedStreams, RaceError
from tests.zoo import IDEAL

CPU = torch.device("cpu")
EVERY_THIRD: dict[str, Any] = {"factor_every": 3, "refresh_every": 3, "patience": 0}
WARM = WarmStarted(NewtonSchulz(warm_steps=12, tolerance=1e-2))
HASTY = WarmStarted(NewtonSchulz(warm_steps=1, tolerance=1e-9))  # most members are prepared from scratch afterwards
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (Cholesky(), EVERY_THIRD),
    "at every step": (Cholesky(), {"factor_every": 1, "refresh_every": 1, "patience": 0}),
    "growing": (Cholesky(), {"factor_every": 3, "refresh_every": 3, "patience": 2}),
    "staggered": (Cholesky(), {**EVERY_THIRD, "stagger": True}),
    "triggered": (Cholesky(), {**EVERY_THIRD, "refresh_above": 0.05}),
    "staggered and triggered": (Cholesky(), {**EVERY_THIRD, "stagger": True, "refresh_above": 0.05}),
    "warm-started": (WARM, EVERY_THIRD),
    "guarded": (Guarded(Cholesky()), EVERY_THIRD),
    "eigen": (Eigen(), EVERY_THIRD),
    "sketches": (Cholesky(), {**EVERY_THIRD, "max_dim": 2, "rank": 1}),
    "sketches, staggered": (WARM, {**EVERY_THIRD, "max_dim": 2, "rank": 1, "stagger": True}),
    "thermodynamic": (Guarded(ThermodynamicInverse(IDEAL)), EVERY_THIRD),
}


def deep(seed: int = 0) -> nn.Sequential:
    """Three equal layers, a bare scale, then a layer of another shape."""
    torch.manual_seed(seed)
    layers = [layer for _ in range(3) for layer in (nn.Linear(4, 4), nn.Tanh())]
    return nn.Sequential(*layers, Scale(4), nn.Linear(4, 3)).double()


def build(solver: Any, seed: int = 0, **options: Any) -> tuple[nn.Module, KFAC]:
    model = deep(seed)
    policy = Policy(trust=Unclipped(), **options)
    return model, KFAC(model, lr=0.05, damping=0.1, solver=solver, policy=policy, generator=fresh(3))


def one_step_late(optimizer: KFAC) -> None:
    """Let every step apply the states that the step before it had; a first state is used at once."""
    last: dict[int, Any] = {}
    propose = optimizer.propose

    def late():
        now = [stack.state for stack in optimizer.stacks]
        for i, stack in enumerate(optimizer.stacks):
            stack.state = last.get(i, stack.state)
        proposal = propose()
        for i, (stack, state) in enumerate(zip(optimizer.stacks, now, strict=True)):
            stack.state = state
            if state is not None:
                last[i] = state
        return proposal

    optimizer.propose = late


@pytest.mark.parametrize("solver,options", WAYS.values(), ids=WAYS.keys())
def test_an_overlapped_run_is_the_run_that_applies_each_refresh_a_step_late(solver, options):
    """Bit by bit; the other run prepares at once and knows nothing of `beside`."""
    runs = []
    for overlap in (True, False):
        model, optimizer = build(solver, overlap=overlap, **options)
        if not overlap:
            one_step_late(optimizer)
        train(model, optimizer, batches(9))
        runs.append((list(model.parameters()), optimizer._tally.refreshes))
    (late, refreshes), (truth, same) = runs
    assert all(torch.equal(p, q) for p, q in zip(late, truth, strict=True))
    assert refreshes == same > 2


class LateReference(Reference):
    """Inverses that the library's step may use one step after they were made."""

    waiting: dict[int, Tensor] | None = None

    def step(self, x: Tensor, target: Tensor) -> float:
        if self.waiting is not None:
            self.inverses, self.waiting = self.waiting, None
        return super().step(x, target)

    def _invert(self) -> None:
        before = dict(self.inverses)
        super()._invert()
        if before:
            self.waiting, self.inverses = self.inverses, before


@pytest.mark.parametrize("every", [1, 3])
def test_an_overlapped_run_equals_the_reference_that_is_a_step_late(every):
    """With the KL clip, momentum and weight decay."""
    torch.manual_seed(0)
    fast = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    slow = copy.deepcopy(fast)
    options: dict[str, Any] = {"lr": 0.1, "damping": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = KFAC(fast, policy=Policy(every, every, 0, overlap=True, trust=KLClip()), **options)
    reference = LateReference([slow[0], slow[2]], factor_every=every, refresh_every=every, patience=0, **options)
    start = [p.detach().clone() for p in slow.parameters()]
    for x, y in batches(8):
        train(fast, optimizer, [(x, y)])
        reference.step(x, y)
    for p, q, before in zip(fast.parameters(), slow.parameters(), start, strict=True):
        assert (p - q).norm() / (q - before).norm() < 1e-10


@pytest.mark.parametrize("solver,options", [*WAYS.values(), (HASTY, EVERY_THIRD)], ids=[*WAYS, "hasty"])
@pytest.mark.parametrize("split", [2, 4, 5])
def test_a_run_saved_with_something_pending_goes_on_bit_equal(solver, options, split):
    """Into a new optimizer, into a copy, and in the run that was saved: all as one that was never saved."""
    data, ends = batches(split + 7), []
    model, optimizer = build(solver, overlap=True, **options)
    train(model, optimizer, data)
    ends.append((model, optimizer))
    model, optimizer = build(solver, overlap=True, **options)
    train(model, optimizer, data[:split])
    ends.append(copy.deepcopy((model, optimizer)))
    weights, state = saved_and_loaded(model.state_dict()), saved_and_loaded(optimizer.state_dict())
    ends.append((model, optimizer))
    other, resumed = build(solver, seed=1, overlap=True, **options)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    ends.append((other, resumed))
    for each in ends[1:]:
        train(*each, data[split:])
    truth, never = ends[0]
    for model, optimizer in ends[1:]:
        assert all(torch.equal(p, q) for p, q in zip(truth.parameters(), model.parameters(), strict=True))
        assert optimizer.report() == never.report()


def test_a_checkpoint_asks_no_other_process(monkeypatch):
    """One process alone may save while others go on: what processes exchange, they exchange in the next step, saved or not."""
    calls, counts = [], []
    monkeypatch.setattr(renewal, "is_parallel", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, **options: calls.append(tensor))  # a world of one
    for saves in (False, True):
        model, optimizer = build(HASTY, overlap=True, **EVERY_THIRD)
        train(model, optimizer, batches(4))
        assert any(stack.pending is not None for stack in optimizer.stacks)
        calls.clear()
        if saves:
            optimizer.state_dict()
        assert not calls
        train(model, optimizer, batches(1))
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def test_what_fails_beside_keeps_its_inverse_and_gets_more_damping_when_it_is_adopted():
    model = network()
    optimizer = KFAC(model, lr=0.1, policy=Policy(1, 1, 0, overlap=True))
    train(model, optimizer, batches(1))
    stack = optimizer.stacks[0]
    stack.mean.right.matrix.copy_(-100 * torch.eye(stack.domain[1]))  # after any batch's share still indefinite
    train(model, optimizer, batches(1))
    before = stack.state, stack.boost.clone()
    assert (before[1] == 1).all()
    train(model, optimizer, batches(1))
    assert torch.equal(stack.state.right.operator.dense(), before[0].right.operator.dense())
    assert (stack.boost == optimizer.policy.boost).all()


def test_corrected_eigenvalues_refuse_to_be_late():
    with pytest.raises(ValueError, match="leave overlap off"):
        Policy(overlap=True, corrected=True)


def test_what_is_pending_is_counted():
    model, optimizer = build(Cholesky(), overlap=True, **EVERY_THIRD)
    train(model, optimizer, batches(3))
    one = optimizer.coverage().held["solver"]
    train(model, optimizer, batches(1))
    assert optimizer.stacks[0].pending is not None
    assert optimizer.coverage().held["solver"] == 2 * one


# --- the order of operations, on streams that are played ---------------------------------------------------------------


def played(streams: PlayedStreams, solver: Any, steps: int = 6, **options: Any) -> tuple[NoRaces, KFAC]:
    """A run with captures, refreshes, a checkpoint and a copy, all under watch."""
    model, optimizer = build(solver, overlap=True, **options)
    optimizer._streams = {"cpu": streams}
    for held in (held for stack in optimizer.stacks for held in (stack.sums.form.left, stack.sums.form.right)):
        if isinstance(held, Sketch):  # Ω is kept for ever, so its memory is not used again
            streams.record(random_basis(held.size, held.rank, torch.float64, CPU), streams.other)
    with NoRaces(streams) as watch:
        for index, (x, y) in enumerate(batches(steps)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if index == steps - 3:
                optimizer.state_dict()
    return watch, optimizer


@pytest.mark.parametrize("solver,options", [*WAYS.values(), (HASTY, EVERY_THIRD)], ids=[*WAYS, "hasty"])
def test_no_order_of_operations_is_left_to_the_speed_of_a_device(solver, options):
    watch, optimizer = played(PlayedStreams(), solver, **options)
    assert watch.operations["side"] > 20
    assert watch.operations["main"] > 100
    plain, other = build(solver, overlap=True, **options)
    train(plain, other, batches(6))
    for p, q in zip(plain.parameters(), optimizer.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_copy_waits_for_what_is_pending():
    streams = PlayedStreams()
    _, optimizer = played(streams, Cholesky(), 4, factor_every=1, refresh_every=1, patience=0)
    assert optimizer.stacks[0].pending.queued.event is not None
    copied = copy.deepcopy(optimizer)
    assert copied.stacks[0].pending.queued.event is None
    assert streams.main.clock["side"] == streams.other.clock["side"]


@pytest.mark.parametrize(
    "streams,complaint",
    [
        (PlayedStreams(main=Deaf("main")), "main reads what side wrote"),
        (PlayedStreams(other=Deaf("side")), "side reads what main wrote"),
    ],
    ids=["main", "side"],
)
def test_a_stream_that_does_not_wait_is_noticed(streams, complaint):
    with pytest.raises(RaceError, match=complaint):
        played(streams, Cholesky(), **EVERY_THIRD)


def test_memory_that_is_not_recorded_is_noticed(monkeypatch):
    monkeypatch.setattr(PlayedStreams, "record", lambda self, tensor, stream: None)
    with pytest.raises(RaceError, match="was not recorded"):
        played(PlayedStreams(), Cholesky(), **EVERY_THIRD)


def test_writing_into_what_is_being_read_is_noticed():
    """What averages that were kept in place would do."""
    streams, x = PlayedStreams(), noise(3, 3)
    with NoRaces(streams):
        queued = queue(streams, x.device, lambda x: x @ x, x)
        with pytest.raises(RaceError, match="may be reading"):
            x.add_(1)
        queued.join()
        x.add_(1)


def test_without_streams_work_is_done_at_once():
    queued = queue(None, torch.device("cpu"), lambda x: x + 1, torch.ones(2))
    assert torch.equal(queued.join(), torch.full((2,), 2.0))
