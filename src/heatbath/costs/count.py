"""How much work one forward and backward pass and one update of a torch optimizer ask of digital hardware.

A dispatch mode watches one forward and one backward pass and counts every product with its shape, by the formulas that
torch registers for its own flop counter, and every other operation as an elementwise pass over what it writes. Views are
free. What an optimizer does per parameter is counted from its update rule; Muon's products from its iteration. All of it
works on torch's `meta` device, where tensors have shapes and no values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from heatbath.work import Kernel, Work, elementwise, matmul, update

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output of the model, target) to a 0-d loss."""

# Operations and numbers (read + written) per parameter of one update, from the update rules.
UPDATES = {"SGD": (5, 5), "Adam": (14, 7), "AdamW": (16, 7), "NAdam": (20, 7)}


# Attention on the CPU, which torch has no formula for: the same algorithm as its flash attention on accelerators.
_FLASH = {
    "_scaled_dot_product_flash_attention_for_cpu": torch.ops.aten._scaled_dot_product_flash_attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": torch.ops.aten._scaled_dot_product_flash_attention_backward,
}


class WorkCounter(TorchDispatchMode):
    """Adds up the kernels that pass through torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[Kernel, float] = {}

    @property
    def work(self) -> Work:
        """All that was counted so far."""
        return Work(self._counts)

    def __torch_dispatch__(  # Any: the dispatcher's own signature
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for kernel, count in _call_work(func, args, kwargs or {}, out).kernels.items():
            self._counts[kernel] = self._counts.get(kernel, 0) + count
        return out


def _call_work(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Work:  # Any: as above
    aten, packet = torch.ops.aten, func.overloadpacket
    tensors = [t for t in args if isinstance(t, Tensor)]
    if packet in (aten.mm, aten.addmm):
        (m, k), n = tensors[-2].shape, tensors[-1].shape[1]
        return Work.of(matmul(m, k, n))
    if packet in (aten.bmm, aten.baddbmm):
        (batch, m, k), n = tensors[-2].shape, tensors[-1].shape[2]
        return Work.of(matmul(m, k, n), batch)
    if packet is aten.convolution:
        outputs = args[1].shape[0]
        return Work.of(matmul(out.numel() // outputs, args[1][0].numel(), outputs))
    if packet is aten.convolution_backward:
        outputs = args[2].shape[0]
        rows, patch = args[0].numel() // outputs, args[2][0].numel()
        passes = [matmul(rows, outputs, patch), matmul(outputs, rows, patch)]
        return sum(
            (Work.of(p) for p, wanted in zip(passes, kwargs.get("output_mask", args[-1]), strict=False) if wanted), Work()
        )
    packet = _FLASH.get(packet.__name__, packet)
    results = [t for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, Tensor)]
    if packet in flop_registry:  # attention and the like: as one cube of as many operations
        flops = float(flop_registry[packet](*args, **kwargs, out_val=out))
        side = max(1, round((flops / 2) ** (1 / 3)))
        return Work.of(Kernel("matmul", (side,) * 3, flops, 4.0 * sum(t.numel() for t in [*tensors, *results])))
    if not results or func.is_view:
        return Work()
    return Work.of(elementwise(max(t.numel() for t in results)))


def model_work(model: nn.Module, loss: Loss, batch: tuple[Tensor, ...]) -> Work:
    """Work of one forward and backward pass on `batch`, counted on a copy.

    The model, its gradients and the global random state stay as they are. Call it before an optimizer puts hooks on the model.
    """
    twin = copy.deepcopy(model)
    devices = [batch[0].device] if batch[0].device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), WorkCounter() as counter:
        loss(twin(*batch[:-1]), batch[-1]).backward()
    return counter.work


def update_work(optimizer: torch.optim.Optimizer) -> Work | None:
    """Work of one `step` of an optimizer that counts none itself; None where its update rule is not known here."""
    kind = type(optimizer).__name__
    if kind == "Muon":
        groups = optimizer.param_groups
        return sum((muon_work(p.shape, group["ns_steps"]) for group in groups for p in group["params"]), Work())
    if kind not in UPDATES:
        return None
    operations, numbers = UPDATES[kind]
    parameters = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return Work.of(update(parameters, operations, numbers))


def muon_work(shape: Sequence[int], steps: int) -> Work:
    """One update of an m × n matrix by Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    With m ≤ n, each Newton–Schulz step is X Xᵀ, its square, and one product with X. The momentum, its norm, decay and
    update are four elementwise passes.

    Args:
        shape: (m, n), in any order.
        steps: Newton–Schulz steps.
    """
    m, n = sorted(shape)
    products = Work.of(matmul(m, n, m)) + Work.of(matmul(m, m, m)) + Work.of(matmul(m, m, n))
    return products * steps + Work.of(elementwise(m * n), 4)
