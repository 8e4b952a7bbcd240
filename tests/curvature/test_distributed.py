"""W processes are one process on the concatenated batch: two of them, over gloo, on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from heatbath.curvature import Categorical, ExactFisher, InputOnly, Reduction, is_parallel, join_processes
from heatbath.optim import KFAC, Policy, QuadraticModel
from heatbath.solvers import Eigen
from tests.curvature.truth import fill
from tests.laws import fresh, noise
from tests.zoo import PLAIN

Parts = list[list[tuple[Tensor, Tensor]]]  # step by step, process by process


class Net(nn.Module):
    """Linear layers, a normalization, an embedding; one layer that only some batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.norm = nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.rare, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.norm(self.first(self.table(tokens)).tanh()).mean(1)
        return self.last(h + self.rare(h) if tokens[0, 0] == 0 else h)


def batches(steps: int, sizes: tuple[int, int], *, rare: bool) -> Parts:
    """Tokens `[B, 3]`; with `rare` the first token of the first process is 0 at even steps, else never."""
    found: Parts = []
    for step in range(steps):
        generator, parts = fresh(step), []
        for rank, size in enumerate(sizes):
            tokens = torch.randint(1, 5, (size, 3), generator=generator)
            if rare and rank == 0 and step % 2 == 0:
                tokens[0, 0] = 0
            parts.append((tokens, torch.randint(3, (size,), generator=generator)))
        found.append(parts)
    return found


CASES: dict[str, tuple[dict, tuple[int, int]]] = {
    "empirical": ({}, (4, 4)),
    "sum": ({"reduction": Reduction.SUM}, (4, 4)),
    "exact": ({"fisher": ExactFisher(Categorical())}, (4, 4)),
    "input only": ({"fisher": InputOnly()}, (4, 4)),
    "blocks": ({"max_dim": 3}, (4, 4)),
    "sketches": ({"max_dim": 3, "rank": 2}, (4, 4)),
    "corrected": ({"corrected": True}, (4, 4)),
    "staggered": ({"stagger": True, "factor_every": 2, "refresh_every": 2}, (4, 4)),
    "staggered, observed": ({"stagger": True, "refresh_every": 2, "fisher": ExactFisher(Categorical())}, (4, 4)),
    "quadratic": ({"quadratic": QuadraticModel(Categorical()), "fisher": ExactFisher(Categorical())}, (4, 4)),
}


def build(options: dict) -> tuple[nn.Module, KFAC]:
    model = fill(Net())
    solver = Eigen() if options.get("corrected") else None
    return model, KFAC(model, lr=0.1, damping=0.1, policy=replace(PLAIN, **options), solver=solver)


def loss_of(outputs: Tensor, target: Tensor, options: dict) -> Tensor:
    return F.cross_entropy(outputs, target, reduction="sum" if options.get("reduction") is Reduction.SUM else "mean")


def one_process(options: dict, data: Parts, optimizer: KFAC, model: nn.Module) -> None:
    for parts in data:
        optimizer.zero_grad()
        outputs = optimizer.observe(torch.cat([model(x) for x, _ in parts]))
        loss_of(outputs, torch.cat([y for _, y in parts]), options).backward()
        optimizer.step()


def worker(rank: int, port: int, folder: str) -> None:
    """Everything that needs two processes, one after the other, results in files."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    assert is_parallel()
    for name in CASES:
        torch.save(two_processes(rank, name, rare=False), Path(folder) / f"{name} {rank}.pt")
    torch.save(two_processes(rank, "empirical", rare=True), Path(folder) / f"rare {rank}.pt")
    torch.save(unequal(rank), Path(folder) / f"unequal {rank}.pt")
    dist.destroy_process_group()


def two_processes(rank: int, name: str, *, rare: bool) -> tuple[list[Tensor], dict[str, Tensor], list[list[int]]]:
    """Parameters, factors and ages after three steps under DDP."""
    options, sizes = CASES[name]
    model, optimizer = build(options)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    for parts in batches(3, sizes, rare=rare):
        x, y = parts[rank]
        optimizer.zero_grad()
        loss_of(optimizer.observe(wrapped(x)), y, options).backward()
        optimizer.step()
    stacks = [stack for stack in optimizer.stacks if stack.mean is not None]
    means = {f"{s.names[0]} {side}": getattr(s.mean, side).dense() for s in stacks for side in ("left", "right")}
    return [p.detach() for p in model.parameters()], means, [s.ages for s in optimizer.stacks]


def unequal(rank: int) -> tuple[Tensor, Tensor, list[bool], Tensor | None]:
    """Factors alone, of parts of 2 and 6 examples; and D of observed outputs where there is no stack."""
    model = fill(nn.Linear(3, 2))
    optimizer = KFAC(model, policy=PLAIN)
    x = noise(8, 3).split([2, 6])[rank]
    model(x).sin().sum(1).mean().backward()
    sums = [stack.sums for stack in optimizer.stacks]
    assert join_processes(sums, None, len(x)) is None
    assert join_processes([], None, 3) is None
    factors, seen = sums[0].collect(Reduction.SUM)
    return factors.left.dense(), factors.right.dense(), seen, join_processes([], None, torch.tensor(3.0))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list]:
    """What both processes saved under a name. They are spawned: a fork would inherit the threads of this process."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, (port, str(folder)), nprocs=2)
    return lambda name: [torch.load(folder / f"{name} {rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one_on_the_concatenated_batch(name, results):
    options, sizes = CASES[name]
    model, optimizer = build(options)
    one_process(options, batches(3, sizes, rare=False), optimizer, model)
    first, second = results(name)
    assert all(torch.equal(p, q) for p, q in zip(first[0], second[0], strict=True))
    stacks = {stack.names[0]: stack for stack in optimizer.stacks}
    for key, mean in first[1].items():
        stack, side = key.split()
        torch.testing.assert_close(mean, getattr(stacks[stack].mean, side).dense(), rtol=1e-10, atol=1e-13)
    for p, q in zip(first[0], model.parameters(), strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=1e-8, atol=1e-11)


@pytest.mark.slow
def test_a_layer_that_only_one_process_uses_stays_the_same_in_both(results):
    """Both count it as seen, or their averages would drift apart."""
    one, two = results("rare")
    assert one[2] == two[2]
    assert any(2 in ages for ages in one[2])  # used at two of three steps
    assert all(torch.equal(p, q) for p, q in zip(one[0], two[0], strict=True))
    assert all(torch.equal(one[1][key], two[1][key]) for key in one[1])


@pytest.mark.slow
def test_parts_of_unequal_size_are_weighed_by_their_terms(results):
    model, x = fill(nn.Linear(3, 2)), noise(8, 3)
    optimizer = KFAC(model, policy=PLAIN)
    model(x).sin().sum(1).mean().backward()
    factors, _ = optimizer.stacks[0].sums.collect(None)
    for left, right, seen, terms in results("unequal"):
        assert seen == [True]
        assert terms == 3.0
        torch.testing.assert_close(left, factors.left.dense(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(right, factors.right.dense(), rtol=1e-12, atol=1e-14)


def test_one_process_is_not_parallel():
    assert not is_parallel()
    assert Policy().distributed


def test_one_triangle_of_each_sum_travels(monkeypatch):
    """n(n + 1)/2 numbers of a symmetric sum, n of a diagonal one; alone, adding up changes nothing."""
    sent: list[int] = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **_: sent.append(tensor.numel()))
    model = fill(nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)))
    optimizer = KFAC(model, policy=PLAIN)
    model(torch.arange(6)).sin().sum().backward()
    sums = [stack.sums for stack in optimizer.stacks]
    before = [tensor.clone() for each in sums for tensor in each.hold()]
    join_processes(sums, Reduction.SUM, 6)
    assert sent[:4] == [4 * 5 // 2, 7, 3 * 4 // 2, 5 * 6 // 2]
    for old, new in zip(before, (tensor for each in sums for tensor in each.hold()), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-15, atol=0)
