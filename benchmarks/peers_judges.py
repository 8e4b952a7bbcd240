"""How `peers.py` judges what an optimizer does: by autograd, or by itself in another way of giving the same data.

*Curvature* compares the block that an optimizer holds for one layer's weight with

    truth = (Σ g gᵀ) ⊗ (Σ a aᵀ),    g = ∂loss/∂y_s,    a = ∂y_s/∂W

over all positions s that use the weight, g and a by autograd, one block for each group of channels. Both are divided by their
trace, so that nobody's convention about factors N or S counts. *Updates* compares what one step does to the parameters.
Averages settle first, at learning rate 0: on the same batch for curvature, on a cycle of batches for updates. *Training* looks
which parameters moved, in float32.
"""

from __future__ import annotations

import io
import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from peers_adapters import LR, Adapter, Batch, Forward, call
from peers_networks import Net, batch, checkpointed, in_place, mlp, plain, seeded
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

CYCLE = 10
TOLERANCE = 1e-3  # float32 somewhere inside (kfac-pytorch's eigenbases, SOAP) gives 1e-5; the defects start at 1e-2


@dataclass(frozen=True)
class Cell:
    """What was seen.

    Args:
        verdict: in two or three words.
        number: the relative error behind it, where there is one.
        detail: the first line of an error or a warning, or a remark.
    """

    verdict: str
    number: float | None = None
    detail: str = ""


def measured(error: float, detail: str = "") -> Cell:
    """A cell for a relative error."""
    return Cell("right" if error < TOLERANCE else "wrong", error, detail)


# --- curvature ------------------------------------------------------------------------------------------------------------


def settle(session: Adapter, steps: Sequence[Sequence[Batch]], **options: Any) -> None:
    """Let averages forget how they began, on steps of one or more micro-batches that come round."""
    session.rate(0.0)
    for i in range(session.settling):
        session.step(steps[i % len(steps)], **options)
    session.rate(LR)


def true_block(model: Net, data: Batch) -> Tensor:
    """(Σ g gᵀ) ⊗ (Σ a aᵀ) of the layer's weight by autograd, block by block where channels are in groups."""
    calls: list[tuple[Tensor, Tensor]] = []
    handle = model.layer.register_forward_hook(lambda module, args, output: calls.append((args[0], output)))
    model.use = {in_place: lambda self, x: F.relu(self.layer(x)), checkpointed: plain}.get(
        model.use, model.use
    )  # the same values
    loss = F.cross_entropy(model(data[0]), data[1])
    handle.remove()
    weight = model.layer.weight
    groups, axis = getattr(model.layer, "groups", 1), 1 if isinstance(model.layer, nn.Conv2d) else -1
    left = torch.zeros(groups, weight.shape[0] // groups, weight.shape[0] // groups, dtype=weight.dtype)
    right = torch.zeros(groups, weight[0].numel(), weight[0].numel(), dtype=weight.dtype)
    for (x, _), grad in zip(calls, torch.autograd.grad(loss, [y for _, y in calls]), strict=True):
        g = grad.movedim(axis, -1).reshape(-1, groups, left.shape[-1])
        left += torch.einsum("ngi,ngj->gij", g, g)
        for group in range(groups):
            channel = group * left.shape[-1]  # any channel of the group: y_s = W a_s for all of them alike

            a = torch.func.jacrev(partial(one_channel, model.layer, x.detach(), axis, channel))(weight.detach())
            a = a.flatten(end_dim=-weight.ndim - 1)[:, channel].flatten(1)
            right[group] += a.mT @ a
    return torch.block_diag(*(torch.kron(b, a) for b, a in zip(left, right, strict=True)))


def curvature(make: Callable[[], Net], shape: tuple[int, ...], peer: type[Adapter], *, forward: Forward = call) -> Cell:
    """The block a peer holds for the layer against the truth, or whether it trains at all."""
    data = batch(peer.dtype, *shape)
    model = seeded(make, peer.dtype)
    session = peer(model)
    before = flat(model)
    settle(session, [[data]], forward=forward)
    if not torch.equal(before, flat(model)):
        return Cell("unstable", None, "parameters moved at learning rate 0")
    block = session.block("layer")
    if block is None:
        return training(make, shape, peer)
    truth = true_block(seeded(make, peer.dtype), data).double()  # a copy that nobody has put hooks on
    return measured(difference(block / block.trace(), truth / truth.trace()))


def one_channel(layer: nn.Module, x: Tensor, axis: int, channel: int, weight: Tensor) -> Tensor:
    outputs: Tensor = torch.func.functional_call(layer, {"weight": weight}, (x,))
    return outputs.select(axis, channel)


# --- updates --------------------------------------------------------------------------------------------------------------


def flat(model: nn.Module) -> Tensor:
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in whole])


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((found - expected).norm() / expected.norm())


Way = Callable[[Batch], list[Batch]]


def whole(data: Batch) -> list[Batch]:
    return [data]


def fourfold(data: Batch) -> list[Batch]:
    return [(data[0].repeat(4, 1), data[1].repeat(4))]


def quarters(data: Batch) -> list[Batch]:
    return list(zip(data[0].chunk(4), data[1].chunk(4), strict=True))


def moved(session: Adapter, model: Net, way: Way, **options: Any) -> Tensor:
    """What one step after settling does to the first layer, with each batch given in a certain way.

    Not to the head: probabilities add up to 1, so its gradient is zero in one direction, where SOAP divides rounding by itself.
    """
    steps = [way(batch(next(model.parameters()).dtype, 8, seed=seed)) for seed in range(CYCLE)]
    settle(session, steps, **options)
    before = flat(model.layer)
    session.step(steps[0], **options)
    return flat(model.layer) - before


def update(
    peer: type[Adapter], way: Way = whole, *, between: Callable[[nn.Module], object] | None = None, **options: Any
) -> Tensor:
    """The same, for a fresh network."""
    model = seeded(mlp, peer.dtype)
    extra = {} if between is None else {"between": partial(between, model)}
    return moved(peer(model, **options), model, way, **extra)


def duplicated(peer: type[Adapter]) -> Cell:
    """Every example four times; only the direction has to stay."""
    one, four = update(peer), update(peer, fourfold)
    return measured(difference(four / four.norm(), one / one.norm()))


def accumulated(peer: type[Adapter]) -> Cell:
    """Four micro-batches against one batch."""
    if not peer.accumulates:
        return Cell("not offered", None, "its own forward_and_backward() takes one batch per step")
    return measured(difference(update(peer, quarters, micro_batches=4), update(peer)))


def scaled(peer: type[Adapter]) -> Cell:
    """With a GradScaler and without."""
    if not peer.scales:
        return Cell("not offered", None, "it calls backward itself")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return measured(difference(update(peer, scaler=scaler), update(peer)))


def interrupted(peer: type[Adapter], *, training: bool) -> Cell:
    """A pass over other examples without gradients, before each backward pass and before the update."""
    others = batch(peer.dtype, 8, seed=CYCLE)[0] * 3

    def look(model: nn.Module) -> None:
        model.train(training)
        with torch.no_grad():
            model(others)
        model.train()

    return measured(difference(update(peer, between=look), update(peer)))


# --- training -------------------------------------------------------------------------------------------------------------


def training(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    peer: type[Adapter],
    *,
    expected: Callable[[str], bool] = lambda name: True,
    midway: Callable[[nn.Module], object] | None = None,
) -> Cell:
    """Which parameters three steps move, after `midway` where there is one, and whether the layer under test has curvature."""
    model = seeded(make, torch.float32)
    session = peer(model)
    steps = [[batch(torch.float32, *shape, seed=seed)] for seed in range(3)]
    if midway is not None:
        for step in steps:
            session.step(step)
        midway(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in steps:
        session.step(step)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    wanted = {name for name in before if expected(name)}
    if changed - wanted:
        return Cell("moves too much", None, ", ".join(sorted(changed - wanted)))
    if wanted - changed:
        return Cell("not trained", None, ", ".join(sorted(wanted - changed)))
    curved = session.curved("layer") if "layer" in session.modules else None
    return Cell("trains, no curvature" if curved is False else "trains")


def without_clip(peer: type[Adapter]) -> Cell:
    """The clip switched off."""
    model = seeded(mlp, torch.float32)
    session = peer(model).unclipped()
    if session is None:
        return Cell("not offered", None, "it has no such clip")
    before = flat(model)
    session.step([batch(torch.float32, 8)])
    return Cell("trains" if not torch.equal(before, flat(model)) else "not trained")


def gradients_left(peer: type[Adapter]) -> Cell:
    """Whether `.grad` after a step is what backward left there."""
    model = seeded(mlp, torch.float32)
    session = peer(model)
    session.step([batch(torch.float32, 8)])
    after = {name: p.grad for name, p in model.named_parameters()}
    if all(g is None for g in after.values()):
        return Cell("cleared")
    left = session.gradients
    same = all(isinstance(left[name], Tensor) and torch.equal(left[name], g) for name, g in after.items())
    return Cell("left alone" if same else "replaced")


def resumed(peer: type[Adapter]) -> Cell:
    """Saved after 7 of 12 steps, factors every 2 and what is made of them every 4, loaded into a fresh pair."""
    data = [batch(peer.dtype, 8, seed=seed) for seed in range(12)]

    def start(seed: int) -> tuple[nn.Module, Adapter]:
        model = seeded(mlp, peer.dtype, seed)
        return model, peer(model, every=(2, 4))

    model, session = start(0)
    for step in data[:7]:
        session.step([step])
    file, here = io.BytesIO(), flat(model)
    torch.save({"model": model.state_dict(), **session.save()}, file)
    for step in data[7:]:
        session.step([step])
    saved, how = restored(file)
    other, again = start(1)
    other.load_state_dict(saved["model"])
    again.load(saved)
    for step in data[7:]:
        again.step([step])
    if torch.equal(flat(model), flat(other)):
        return Cell("bit-equal", 0.0, how)
    return Cell("goes another way", difference(flat(other) - here, flat(model) - here), how)


def restored(file: io.BytesIO) -> tuple[dict[str, Any], str]:
    """The file's contents, and whether torch.load's default could read it."""
    try:
        file.seek(0)
        return torch.load(file), ""
    except Exception as error:
        file.seek(0)
        return torch.load(file, weights_only=False), f"needs weights_only=False: {first_line(error)[:60]}"


# --- two processes --------------------------------------------------------------------------------------------------------


Join = Callable[[type[Adapter], Net], Adapter]


def by_wrapper(peer: type[Adapter], model: Net) -> Adapter:
    """Under DistributedDataParallel."""
    return peer.distributed(model)


def by_itself(peer: type[Adapter], model: Net) -> Adapter:
    """By what the library does for itself."""
    return peer(model)


def in_pieces(peer: type[Adapter], model: Net) -> Adapter:
    """Each process holds a piece of every parameter (FSDP2)."""
    return peer(fully_shard(model))


def parallel(peer: type[Adapter], *, join: Join) -> Cell:
    """Two processes, half of each batch each, against one process with all of it."""
    if join is by_itself and peer.wraps:
        return Cell("not offered", None, "it is made for DistributedDataParallel")
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(rank_of_two, (peer, join, folder), nprocs=2, start_method="fork")
        found = [torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1)]
    for each in found:
        if isinstance(each, str):
            return Cell("raises", None, each)
    if not torch.equal(*found):
        return Cell("processes drift apart", difference(*found))
    return measured(difference(found[0], update(peer)))


def rank_of_two(rank: int, peer: type[Adapter], join: Join, folder: str) -> None:
    """One of the processes; leaves its update, or an error's first line, in a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def half(data: Batch) -> list[Batch]:
        return [(data[0].chunk(2)[rank], data[1].chunk(2)[rank])]

    mine: Tensor | str
    try:
        model = seeded(mlp, peer.dtype)
        mine = moved(join(peer, model), model, half)
    except Exception as error:
        mine = told(error)
    torch.save(mine, Path(folder) / f"{rank}.pt")
    os._exit(0)  # a process whose partner failed would wait for it


def told(error: Exception) -> str:
    """Kind and first line of an error; where it says nothing, the line of code that raised it."""
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return f"{type(error).__name__}: {first_line(error) or line}"


def first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]
