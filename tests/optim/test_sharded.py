"""`fully_shard` (FSDP2): two processes that each hold a piece of every parameter are one process on the concatenated batch."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

from heatbath.curvature import Categorical, ExactFisher, Reduction
from heatbath.optim import KFAC, Policy, QuadraticModel, preconditioned
from tests.curvature.truth import fill
from tests.laws import fresh
from tests.zoo import PLAIN

STEPS = 4
Steps = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """Sizes that two processes cannot share evenly, a parameter without a layer, attention, a part sharded of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.shift = nn.Embedding(5, 4), nn.Parameter(torch.zeros(1))
        self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
        self.part = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Tanh())
        self.last = nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)
        h = h + self.mix(h, h, h, need_weights=False)[0]
        return self.last(self.part(h).mean(1) + self.shift)


CASES: dict[str, dict] = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "l2": {"policy": {"l2": 0.05}},
    "sum": {"policy": {"reduction": Reduction.SUM}},
    "blocks": {"policy": {"max_dim": 3}},
    "sketches": {"policy": {"max_dim": 3, "rank": 1}},
    "rarely": {"policy": {"factor_every": 2, "refresh_every": 2}},
}


def data() -> Steps:
    """Tokens `[8, 3]` and classes for each step."""
    tokens = [torch.randint(5, (8, 3), generator=fresh(step)) for step in range(STEPS)]
    return [(x, torch.randint(3, (8,), generator=fresh(9 + step))) for step, x in enumerate(tokens)]


def build(case: str, *, sharded: bool = False, seed: int = 0) -> tuple[nn.Module, KFAC]:
    model = fill(Net(), seed)
    if sharded:
        for unit in (model.part, model.mix, model.last, model):
            fully_shard(unit)
    options = dict(CASES[case])
    policy = replace(PLAIN, **options.pop("policy", {}))
    return model, KFAC(model, lr=0.1, damping=0.1, policy=policy, **options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Steps, *, total: bool = False) -> None:
    for x, y in steps:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y, reduction="sum" if total else "mean").backward()
        optimizer.step()


def wholes(model: nn.Module) -> list[Tensor]:
    return [p.detach().full_tensor() for p in model.parameters()]


def worker(rank: int, port: int, folder: str) -> None:
    """Everything that needs two processes, one after the other, results in files."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module=r"torch\..*")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mine = [(x.chunk(2)[rank], y.chunk(2)[rank]) for x, y in data()]
    found: dict = {"refused": refusals(rank)}
    for case in CASES:
        model, optimizer = build(case, sharded=True)
        train(model, optimizer, mine, total=case == "sum")
        found[case] = wholes(model)
    found["kinds"] = str(optimizer.coverage())
    found["resumed"] = resumed(mine, folder)
    model = build("plain", sharded=True)[0]
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    preconditioned(sgd, model, damping=0.1, policy=PLAIN)
    train(model, sgd, mine)
    found["in front of SGD"] = wholes(model)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def resumed(mine: Steps, folder: str) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of an uninterrupted run, and of one that went through `torch.distributed.checkpoint` in mid-interval."""
    model, optimizer = build("rarely", sharded=True)
    train(model, optimizer, mine[:3])
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/checkpoint")
    train(model, optimizer, mine[3:])
    other, again = build("rarely", sharded=True, seed=1)
    weights, state = get_state_dict(other, again)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/checkpoint")
    set_state_dict(other, again, model_state_dict=weights, optim_state_dict=state)
    train(other, again, mine[3:])
    return wholes(model), wholes(other)


def refusals(rank: int) -> dict[str, str]:
    """What is said to models that lie in pieces in another way, and to policies that need whole parameters."""
    mesh = init_device_mesh("cpu", (2,))
    parallel = nn.Linear(4, 2)
    parallel.weight = nn.Parameter(distribute_tensor(parallel.weight.detach(), mesh, [Shard(0)]))
    parallel.bias = nn.Parameter(distribute_tensor(parallel.bias.detach(), mesh, [Replicate()]))
    attempts: dict[str, Callable[[], object]] = {
        "tensor parallelism": lambda: KFAC(parallel),
        "flattened": lambda: KFAC(FullyShardedDataParallel(nn.Linear(4, 2), device_id=torch.device("cpu"))),
    }
    for name, policy in {
        "observed": Policy(fisher=ExactFisher(Categorical())),
        "quadratic": Policy(quadratic=QuadraticModel(Categorical())),
    }.items():
        attempts[name] = lambda policy=policy: KFAC(fully_shard(nn.Linear(4, 2)), policy=policy)
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except ValueError as error:
            said[name] = str(error)
    return said


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What both processes found. They are spawned: a fork would inherit the threads of this process."""
    folder = tmp_path_factory.mktemp("pieces")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, (port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_trap_7_two_processes_with_pieces_are_one_on_the_concatenated_batch(case, results):
    model, optimizer = build(case)
    train(model, optimizer, data(), total=case == "sum")
    for found in results:
        for p, q in zip(found[case], model.parameters(), strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_every_layer_of_a_sharded_model_has_curvature(results):
    sizes = 5 * 4 + (4 * (4 * 4) + 4 * 4) + (3 * 4 + 3) + 2 * 3 + (3 * 3 + 3)  # all but `shift`
    assert f"{sizes} of {sizes + 1} trainable numbers by curvature" in results[0]["kinds"]


@pytest.mark.slow
def test_a_sharded_run_saved_in_mid_interval_goes_on_bit_equal(results):
    for found in results:
        assert all(torch.equal(p, q) for p, q in zip(*found["resumed"], strict=True))


@pytest.mark.slow
def test_in_front_of_another_optimizer_pieces_are_one_process_too(results):
    model = build("plain")[0]
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    preconditioned(sgd, model, damping=0.1, policy=PLAIN)
    train(model, sgd, data())
    for found in results:
        for p, q in zip(found["in front of SGD"], model.parameters(), strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, message",
    [
        ("tensor parallelism", "tensor parallelism is not supported"),
        ("flattened", "FullyShardedDataParallel flattens parameters"),
        ("observed", "observed outputs cannot be pulled back"),
        ("quadratic", "observed outputs cannot be pulled back"),
    ],
)
def test_pieces_of_another_kind_are_refused(name, message, results):
    for found in results:
        assert message in found["refused"][name]
