"""How much work the passes of a training step ask of digital hardware, and all of a run.

A dispatch mode watches one forward and one backward pass and counts every product with its shape, by the formulas that
torch registers for its own flop counter, and every other operation as an elementwise pass over what it writes. Views are
free. What an optimizer does per parameter is counted from its update rule. `Occasions` count the steps in which work was
asked for: a total alone does not tell a stack of twelve every twelfth step from one problem each step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from heatbath.experiments.experiment import Loss
from heatbath.optim import NaturalGradient, Pass
from heatbath.optim.quadratic import linearize
from heatbath.work import Kernel, Work, elementwise, matmul, update

# Operations and numbers (read + written) per parameter of one update, from the update rules.
UPDATES = {"SGD": (5, 5), "Adam": (14, 7), "AdamW": (16, 7), "NAdam": (20, 7)}


# Attention on the CPU, which torch has no formula for: the same algorithm as its flash attention on accelerators.
_FLASH = {
    "_scaled_dot_product_flash_attention_for_cpu": torch.ops.aten._scaled_dot_product_flash_attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": torch.ops.aten._scaled_dot_product_flash_attention_backward,
}


class _Counter(TorchDispatchMode):
    """Adds up the kernels that pass through torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(  # Any: the dispatcher's own signature
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.work = self.work + _call_work(func, args, kwargs or {}, out)
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
    with torch.random.fork_rng(devices=devices), _Counter() as counter:
        loss(twin(*batch[:-1]), batch[-1]).backward()
    return counter.work


def pass_work(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, batch: tuple[Tensor, ...]) -> dict[Pass, Work]:
    """Work of one of each pass that an optimizer's policy asks for beside forward and backward of the loss.

    As if all parameters had curvature: it counts too much where some are left to AdamW.

    Args:
        model: a copy without hooks; the global random state stays as it is.
        optimizer: for the original.
        loss: of the task.
        batch: of one step.
    """
    if not isinstance(optimizer, NaturalGradient):
        return {}
    policy, found = optimizer.policy, {}
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.random.fork_rng(devices=[batch[0].device] if batch[0].device.type == "cuda" else []):
        if policy.adapt is not None:
            with torch.no_grad(), _Counter() as counter:
                loss(model(*batch[:-1]), batch[-1])
            found[Pass.EVALUATE] = counter.work
        if policy.fisher.observes or policy.quadratic is not None:
            outputs = model(*batch[:-1])
        if policy.fisher.observes:
            own = [[p for p in m.parameters(recurse=False) if p.requires_grad] for m in model.modules()]
            probes = [min(some, key=Tensor.numel) for some in own if some]  # as the optimizer pulls back
            with _Counter() as counter:
                torch.autograd.grad(outputs, probes, torch.ones_like(outputs), retain_graph=True, allow_unused=True)
            found[Pass.PULL] = counter.work
        if policy.quadratic is not None:
            seen = policy.quadratic.likelihood.observe(outputs, batch[-1], reduction=policy.reduction)
            with _Counter() as counter:
                linear = linearize(outputs, seen, parameters)
            found[Pass.LINEARIZE] = counter.work
            with _Counter() as counter:
                linear.push(parameters, [p.detach() for p in parameters])
            found[Pass.PUSH] = counter.work
    return found


def update_work(optimizer: torch.optim.Optimizer) -> Work | None:
    """Work of one `step` of an optimizer that counts none itself; None where its update rule is not known here."""
    if type(optimizer).__name__ not in UPDATES:
        return None
    operations, numbers = UPDATES[type(optimizer).__name__]
    parameters = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return Work.of(update(parameters, operations, numbers))


def total_work(
    optimizer: torch.optim.Optimizer, *, model_step: Work, steps: int, passes: Mapping[Pass, Work] | None = None
) -> Work | None:
    """Everything `steps` steps asked for: the model's passes, and the optimizer's own count or its update rule.

    Args:
        optimizer: that made the steps.
        model_step: of a forward and a backward pass.
        steps: how many.
        passes: of each further pass that the optimizer counts; those it counts and this lacks are free.

    Returns:
        None where neither is known: half a count would flatter.
    """
    if steps == 0:
        return Work()
    own = getattr(optimizer, "work", None)
    if isinstance(own, Work):
        counts = optimizer.passes if isinstance(optimizer, NaturalGradient) else {}
        further = sum(((passes or {}).get(kind, Work()) * count for kind, count in counts.items()), Work())
        return model_step * steps + own + further
    update = update_work(optimizer)
    return None if update is None else model_step * steps + update * steps


class Occasions:
    """In how many steps of a run each kernel and job was asked for.

    Attributes:
        steps: a `Work` whose counts are these numbers of steps.
    """

    def __init__(self) -> None:
        self.steps = self._seen = Work()

    def see(self, total: Work) -> None:
        """Count one step.

        Args:
            total: everything asked for until its end.
        """
        seen = self._seen
        kernels = {kernel: 1.0 for kernel, count in total.kernels.items() if count > seen.kernels.get(kernel, 0)}
        jobs = {job: 1.0 for job, count in total.jobs.items() if count > seen.jobs.get(job, 0)}
        self.steps, self._seen = self.steps + Work(kernels, jobs), total

    def load(self, steps: Work, total: Work) -> None:
        """Go on from a checkpoint.

        Args:
            steps: as it was.
            total: everything asked for until then.
        """
        self.steps, self._seen = steps, total


def split_by_occasions(work: Work, occasions: Work) -> list[tuple[Work, float]]:
    """Take the work of a run apart by how often its parts ran.

    Args:
        work: of all steps.
        occasions: `Occasions.steps` of the same run.

    Returns:
        parts that add up to `work`, each with the number of steps it ran in.
    """
    parts: dict[float, Work] = {}
    for kernel, count in work.kernels.items():
        steps = occasions.kernels[kernel]
        parts[steps] = parts.get(steps, Work()) + Work.of(kernel, count)
    for job, count in work.jobs.items():
        steps = occasions.jobs[job]
        parts[steps] = parts.get(steps, Work()) + Work.of(job, count)
    return [(part, steps) for steps, part in parts.items()]
