"""Ordinary tensors pass through what is there for tensors in pieces; one process alone holds all of a piece."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard

from heatbath.curvature.sharding import check_sharding, is_sharded, norms, piece, share, stands_for, whole
from heatbath.optim import KFAC
from tests.curvature.truth import fill
from tests.laws import noise
from tests.zoo import PLAIN


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\..*")
        yield
    dist.destroy_process_group()


def test_an_ordinary_tensor_is_its_own_piece():
    x, other = noise(3, 2), noise(3, 2, seed=1)
    assert not is_sharded(x)
    assert whole(x) is x and piece(x) is x and share(x, other) is x
    assert stands_for(x, x) and not stands_for(other, x)
    assert norms([]) == []
    torch.testing.assert_close(norms([x])[0], x.square().sum().sqrt())
    assert not check_sharding(nn.Linear(3, 2))


def test_one_process_with_pieces_is_one_without(alone):
    found = []
    for sharded in (True, False):
        model = fill(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)))
        if sharded:
            fully_shard(model[0])
            fully_shard(model)
            assert all(is_sharded(p) for p in model.parameters()) and check_sharding(model)
        optimizer = KFAC(model, lr=0.1, damping=0.1, weight_decay=0.1, policy=PLAIN)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(noise(6, 4)), torch.arange(6) % 2).backward()
            optimizer.step()
        assert optimizer.coverage().count("kfac") == 15 + 6 + 8
        found.append([whole(p).detach() for p in model.parameters()])
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_tensor_parallel_parameters_are_refused(alone):
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    model = nn.Linear(4, 2)
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), init_device_mesh("cpu", (1,)), [Shard(0)]))
    with pytest.raises(ValueError, match=r"weight is a DTensor that fully_shard alone did not make: tensor parallelism is not"):
        KFAC(model)
