"""Independent truth for curvature: Jacobians and Hessians of `torch.func`, one block at a time.

The exact Fisher of a loss with output Hessian H_n = S_n S_nᵀ per example is Σ_n Σ_c J_nᵀ s_nc s_ncᵀ J_n / N. Ordinary backward
passes can bring it: one for each column c, of the loss Σ_n s_nc · f_n / (N √C). The √C is there because C passes count C·N
examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from heatbath.curvature import Reduction, Sharing
from heatbath.layers import default_rules, rule_for
from heatbath.operators import Kronecker
from heatbath.optim import KFAC
from tests.laws import noise
from tests.zoo import PLAIN

Columns = Callable[[Tensor], Sequence[Tensor]]


def fill(model: nn.Module, seed: int = 0, scale: float = 0.7) -> nn.Module:
    """The model in float64 with fixed random parameters."""
    model = model.double()
    for index, parameter in enumerate(model.parameters()):
        parameter.data.copy_(scale * noise(*parameter.shape, seed=100 * seed + index))
    return model


def optimizer_for(model: nn.Module, *, reduction: Reduction = Reduction.EXAMPLES, **options: Any) -> KFAC:
    """K-FAC with nothing in between; `sharing` by module name."""
    sharing: dict[str, Sharing] = options.pop("sharing", {})
    policy = replace(PLAIN, reduction=reduction, sharing=sharing)
    return KFAC(model, **{"lr": 0.0, "damping": 1.0, "momentum": 0.0, "policy": policy, **options})


def factors(optimizer: KFAC) -> dict[str, Kronecker]:
    """The factors of the passes since the last step, by layer name (`name`, or `name[block]` from the second block on)."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad()
    found: dict[str, Kronecker] = {}
    for stack in optimizer.stacks:
        for place in stack.places:
            mean, span = stack.mean, place.slice
            if mean is None:
                continue
            name = place.site.name + (f"[{place.block}]" if place.block else "")
            found[name] = Kronecker(_members(mean.left, span), _members(mean.right, span))
    return found


def _members(side: Any, span: slice) -> Any:  # Any: Dense or Diagonal
    field = "matrix" if hasattr(side, "matrix") else "diagonal"
    return replace(side, **{field: getattr(side, field)[span].clone()})


def capture(model: nn.Module, loss: Callable[[], Tensor], **options: Any) -> dict[str, Kronecker]:
    """Factors of one ordinary backward pass."""
    optimizer = optimizer_for(model, **options)
    loss().backward()
    found = factors(optimizer)
    optimizer.capture.detach()
    return found


def exact_passes(model: nn.Module, x: Tensor, columns: Columns, terms: int) -> None:
    """The backward passes that bring the exact Fisher of a loss that is a mean over `terms` terms."""
    with torch.no_grad():
        count = len(columns(model(x)))
    for c in range(count):
        outputs = model(x)
        ((outputs * columns(outputs.detach())[c]).sum() / (terms * count**0.5)).backward()


def exact(model: nn.Module, x: Tensor, columns: Columns, terms: int | None = None, **options: Any) -> dict[str, Kronecker]:
    """Factors of the exact Fisher."""
    optimizer = optimizer_for(model, **options)
    exact_passes(model, x, columns, len(x) if terms is None else terms)
    found = factors(optimizer)
    optimizer.capture.detach()
    return found


def squared_error(outputs: Tensor) -> list[Tensor]:
    """√(2/C) e_c at every position: the root of the output Hessian (2/C) I of one term of `MSELoss(mean)`."""
    size = outputs.shape[-1]
    return [(2 / size) ** 0.5 * torch.eye(size, dtype=outputs.dtype)[c].expand_as(outputs) for c in range(size)]


def cross_entropy(logits: Tensor) -> list[Tensor]:
    """(e_c − p) √p_c: Σ_c s_c s_cᵀ = diag(p) − p pᵀ."""
    p = logits.softmax(-1)
    eye = torch.eye(logits.shape[-1], dtype=logits.dtype)
    return [(eye[c] - p) * p[..., c : c + 1].sqrt() for c in range(logits.shape[-1])]


def binary_cross_entropy(logits: Tensor) -> list[Tensor]:
    """√(p(1−p)/C) e_c: `BCEWithLogitsLoss(mean)` averages over features."""
    p, eye = logits.sigmoid(), torch.eye(logits.shape[-1], dtype=logits.dtype)
    return [eye[c] * (p * (1 - p) / logits.shape[-1]).sqrt() for c in range(logits.shape[-1])]


def packed_jacobian(model: nn.Module, name: str, x: Tensor) -> list[Tensor]:
    """Jacobian of all outputs in each block of a layer, `[*outputs, P, O, I]` per block."""
    module = model.get_submodule(name)
    rule = rule_for(module, default_rules())
    assert rule is not None
    prefix = f"{name}." if name else ""
    own = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    jacobian = jacrev(lambda p: functional_call(model, {prefix + n: v for n, v in p.items()}, (x,)))(own)
    shape = model(x).shape
    flat = {n: j.reshape(shape.numel(), *own[n].shape) for n, j in jacobian.items()}
    rows = [rule.pack(module, {n: j[i] for n, j in flat.items()}) for i in range(shape.numel())]
    return [torch.stack([row[b] for row in rows]).reshape(*shape, *rows[0][b].shape) for b in range(len(rows[0]))]


def ggn_block(model: nn.Module, name: str, x: Tensor, columns: Columns, terms: int | None = None, block: int = 0) -> Tensor:
    """Σ_n J_nᵀ H_n J_n / N of one block, `[P, O·I, O·I]`."""
    jacobian = packed_jacobian(model, name, x)[block].flatten(-2)
    total = torch.zeros(())
    for s in columns(model(x).detach()):
        if s.ndim == 2:  # examples do not share terms
            pulled = torch.einsum("nc,ncpi->npi", s, jacobian)
        else:  # neither do positions
            pulled = torch.einsum("nrc,nrcpi->nrpi", s, jacobian).flatten(0, 1)
        total = total + torch.einsum("npi,npj->pij", pulled, pulled)
    return total / (len(x) if terms is None else terms)


def hessian_block(model: nn.Module, name: str, loss: Callable[[nn.Module, dict[str, Tensor]], Tensor]) -> Tensor:
    """Hessian of a loss in a Linear's [W b] (or W), `[O·I, O·I]`, by `torch.func.hessian`."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    prefix = f"{name}." if name else ""
    width = module.in_features
    joint = module.weight if module.bias is None else torch.cat((module.weight, module.bias[:, None]), 1)

    def of(matrix: Tensor) -> Tensor:
        parts = {f"{prefix}weight": matrix[:, :width]}
        if module.bias is not None:
            parts[f"{prefix}bias"] = matrix[:, -1]
        return loss(model, parts)

    full = hessian(of)(joint.detach())
    return full.reshape(joint.numel(), joint.numel())


def error(got: Tensor, truth: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    return ((got - truth).norm() / truth.norm()).item()
