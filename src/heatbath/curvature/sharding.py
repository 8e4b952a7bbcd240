"""Parameters of which each process holds a piece (`torch.distributed.fsdp.fully_shard`).

Between passes such a parameter is a DTensor; during a pass a whole, plain parameter stands in its place, so rows are as
everywhere. Its gradient arrives as a DTensor, averaged over processes. Curvature is whole in every process, as under
DistributedDataParallel: gradients are gathered once a step, and of each update a process takes its own piece. That saves the
memory of parameters, gradients and AdamW's state, not that of curvature.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def is_sharded(tensor: object) -> bool:
    """Whether a tensor lies in pieces over processes; nothing is imported for tensors that do not."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Where it lies in pieces, every process of its mesh has to call this."""
    if not is_sharded(tensor):
        return tensor
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]  # a DTensor
    return full


def piece(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory."""
    if not is_sharded(tensor):
        return tensor
    local: Tensor = tensor.to_local()  # type: ignore[attr-defined]  # a DTensor
    return local


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has, laid out like another one; nothing is sent."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]  # a DTensor
    everywhere = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    shared: Tensor = everywhere.redistribute(placements=placements)
    return shared


def own_pieces(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What this process holds of some parameters, and of values for all of them that every process has."""
    return [piece(p) for p in parameters], [piece(share(v, p)) for v, p in zip(values, parameters, strict=True)]


def check_sharding(model: nn.Module) -> bool:
    """Whether parameters of a model lie in pieces, in the one way that is understood.

    Raises:
        ValueError: they do in another way.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and any(isinstance(m, fsdp.FullyShardedDataParallel) for m in model.modules()):
        raise ValueError(
            "FullyShardedDataParallel flattens parameters, so their layers cannot be seen: shard the model with "
            "torch.distributed.fsdp.fully_shard, then build the optimizer"
        )
    pieces = {name: p for name, p in model.named_parameters() if is_sharded(p)}
    if not pieces:
        return False
    roots = [] if fsdp is None else [name for name, m in model.named_modules() if isinstance(m, fsdp.FSDPModule)]
    for name, p in pieces.items():
        managed = any(root == "" or name.startswith(f"{root}.") for root in roots)
        placements = p.placements  # type: ignore[attr-defined]  # a DTensor
        if not managed or sum(placement.is_shard() for placement in placements) > 1:
            raise ValueError(
                f"{name} is a DTensor that fully_shard alone did not make: tensor parallelism is not supported, shard with "
                "torch.distributed.fsdp.fully_shard only"
            )
    return True


def stands_for(found: object, parameter: Tensor) -> bool:
    """Whether what a module computes with is a parameter, or the whole of one that lies in pieces."""
    if found is parameter:
        return True
    return is_sharded(parameter) and type(found) is nn.Parameter and found.shape == parameter.shape


def norms(tensors: list[Tensor]) -> list[Tensor]:
    """Their norms, 0-d each."""
    return [whole(n) for n in torch._foreach_norm(tensors)] if tensors else []
