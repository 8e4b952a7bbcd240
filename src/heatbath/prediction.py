"""What one training step of a model costs on given hardware: counted on shapes, then priced.

The model is copied to torch's `meta` device, where tensors have shapes and no values, and the optimizer itself is stepped
there, so nothing is estimated: captures, refreshes and solves are the `Work` that a real run of the same optimizer counts.
Passes through the model are counted as they go through torch's dispatcher. The mean is over one period of the long run: the
steps from one refresh to the next (all stacks' refreshes, where they are staggered), after the first intervals, which are
short, are over.

What depends on values is taken as in the usual case: no refresh fails.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from heatbath.costs import Digital, Hardware, StepBill, StepWork, h100, mean_bill, split_sides
from heatbath.costs.count import UPDATES, Loss, WorkCounter, model_work, update_work
from heatbath.machines import Machine, MachineSpec
from heatbath.optim import NaturalGradient, Pass, Policy
from heatbath.optim.joint import JointNaturalGradient
from heatbath.optim.quadratic import linearize
from heatbath.work import Work

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
Batch = tuple[Tensor, ...]
_NEVER = 10**9  # steps


def predict(
    model: nn.Module,
    loss: Loss,
    batch: Sequence[Tensor],
    *,
    optimizer: Optimizers | Callable[[nn.Module], Optimizers],
    hardware: Digital | None = None,
    half: Digital | None = None,
    machine: Machine | MachineSpec | None = None,
    machines: int | None = None,
    replicas: int = 1,
    link: float | None = None,
) -> StepBill:
    """What one training step costs in the long run, without making one.

    Neither the model nor the optimizer is touched, nothing of them is copied but shapes, and values of the batch are not
    read: tensors of the `meta` device will do, for the model and for the batch.

    Args:
        model: the model; its training mode counts.
        loss: of the model's output and the targets, 0-d.
        batch: inputs and, last, targets: `loss(model(*batch[:-1]), batch[-1])`.
        optimizer: an optimizer of `model`, a callable that makes one of a model it is given (`hb.KFAC`, `torch.optim.AdamW`,
            `lambda model: hb.KFAC(model, solver=…)`), or several that share the parameters (Muon and AdamW).
        hardware: the digital side; None: one NVIDIA H100.
        half: the same with products in lower precision, for refreshes by products; None: as `hardware`.
        machine: works in place of the machine that the optimizer's solver names; None: that one.
        machines: how many there are in all; None: one for every matrix that is held, times `replicas`. Where they are fewer
            than the matrices that are solved with in a step, each is sent in every step.
        replicas: machines that hold the same matrix and share its drives.
        link: bits per second that all machines share, whatever each of them could take; None: no such limit.

    Returns:
        Seconds and joules a step, in all and by phase; what nobody stated stays "at least".

    Raises:
        TypeError: something that is no model, batch, machine or optimizer.
        ValueError: no machines, or a link that carries nothing; the loss is no 0-d tensor; the model cannot be run on such a
            batch, or only with values; the optimizer's work is not counted.

    >>> batch = torch.rand(32, 64), torch.rand(32, 8)
    >>> bill = predict(nn.Linear(64, 8), nn.functional.mse_loss, batch, optimizer=torch.optim.AdamW)
    >>> list(bill.phases), bill.work["solve"].flops  # 16 operations for each of 520 parameters
    (['passes', 'solve'], 8320.0)
    """
    placed = Hardware(h100() if hardware is None else hardware, None, half, machines, replicas, link)
    steps, spec = count_steps(model, loss, batch, optimizer=optimizer, machine=machine)
    return mean_bill(steps, replace(placed, spec=spec))


def count_steps(
    model: nn.Module,
    loss: Loss,
    batch: Sequence[Tensor],
    *,
    optimizer: Optimizers | Callable[[nn.Module], Optimizers],
    machine: Machine | MachineSpec | None = None,
) -> tuple[list[StepWork], MachineSpec | None]:
    """The work of every step of one period of the long run, and the machine that takes part; arguments as of `predict`."""
    model = getattr(model, "_orig_mod", model)  # what `torch.compile` wraps
    if not isinstance(model, nn.Module):
        raise TypeError(f"predict takes the model first: expected nn.Module, got {type(model).__name__}")
    lazy = next((name for name, p in model.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        raise ValueError(f"{lazy} has no shape yet: run one batch through the model first")
    if isinstance(batch, Tensor) or len(batch) < 2 or not all(isinstance(t, Tensor) for t in batch):
        raise TypeError("batch is a tuple of tensors: the model's inputs and, last, the loss's targets")
    shapes = tuple(torch.empty_like(t, device="meta") for t in batch)
    with torch.random.fork_rng(devices=[]):
        return _count(model, _on_meta(model), loss, shapes, optimizer, machine)


def _count(
    model: nn.Module,
    twin: nn.Module,
    loss: Loss,
    shapes: Batch,
    optimizer: Optimizers | Callable[[nn.Module], Optimizers],
    machine: Machine | MachineSpec | None,
) -> tuple[list[StepWork], MachineSpec | None]:
    """The same on `twin`, a copy on shapes."""
    passes = _passes(twin, loss, shapes)
    if isinstance(optimizer, torch.optim.Optimizer):
        made: Any = [_moved(optimizer, model, twin)]  # Any: whatever a callable returns
    elif callable(optimizer):
        made = _made(optimizer, twin)
        made = list(made) if isinstance(made, Sequence) else [made]
    else:
        made = [_moved(part, model, twin) for part in optimizer]
    layerwise = [part for part in made if isinstance(part, NaturalGradient)]
    if layerwise and len(made) == 1:
        return _count_layerwise(layerwise[0], loss, shapes, passes, machine)
    if machine is not None:
        raise ValueError("machine= is for a solver that works on one: give KFAC(…, solver=…) as the optimizer, or leave it out")
    update = sum((_update(part, twin) for part in made), Work())
    return [StepWork(passes, update)], None


# --- on shapes ----------------------------------------------------------------------------------------------------------------


class _Shapes(TorchFunctionMode):
    """Copies of tensors get their shapes and land on the meta device."""

    def __torch_function__(  # Any: torch's own protocol
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            memo[id(tensor)] = torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
            return memo[id(tensor)]
        if func is Tensor.clone:  # what a parameter copies itself by
            return torch.empty_like(args[0], device="meta")
        return func(*args, **(kwargs or {}))


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy without values, and without the hooks of optimizers."""
    with _Shapes():
        twin = copy.deepcopy(model)
    for module in twin.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if getattr(getattr(hook, "func", hook), "__module__", "").startswith("heatbath."):
                    del hooks[key]
    return twin


def _passes(model: nn.Module, loss: Loss, batch: Batch) -> Work:
    """Work of forward and backward, once the loss has been found to be one."""
    shapes = ", ".join(str(tuple(t.shape)) for t in batch)
    try:
        value = loss(model(*batch[:-1]), batch[-1])
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        values = isinstance(error, NotImplementedError) or "meta tensor" in str(error)
        why = "on shapes alone, since it reads values" if values else f"on a batch of shapes {shapes}"
        raise ValueError(f"the model and its loss cannot be run {why}: {error}") from error
    if not isinstance(value, Tensor) or value.dim() > 0 or not value.requires_grad:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"loss(output, target) must return a 0-d tensor that depends on parameters, got {got}: take the mean of it"
        )
    return model_work(model, loss, batch)


def pass_work(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, batch: Batch) -> dict[Pass, Work]:
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
            with torch.no_grad(), WorkCounter() as counter:
                loss(model(*batch[:-1]), batch[-1])
            found[Pass.EVALUATE] = counter.work
        if policy.fisher.observes or policy.quadratic is not None:
            outputs = model(*batch[:-1])
        if policy.fisher.observes:
            own = [[p for p in m.parameters(recurse=False) if p.requires_grad] for m in model.modules()]
            probes = [min(some, key=Tensor.numel) for some in own if some]  # as the optimizer pulls back
            with WorkCounter() as counter:
                torch.autograd.grad(outputs, probes, torch.ones_like(outputs), retain_graph=True, allow_unused=True)
            found[Pass.PULL] = counter.work
        if policy.quadratic is not None:
            seen = policy.quadratic.likelihood.observe(outputs, batch[-1], reduction=policy.reduction)
            with WorkCounter() as counter:
                linear = linearize(outputs, seen, parameters)
            found[Pass.LINEARIZE] = counter.work
            with WorkCounter() as counter:
                linear.push(parameters, [p.detach() for p in parameters])
            found[Pass.PUSH] = counter.work
    return found


# --- optimizers ---------------------------------------------------------------------------------------------------------------


def _made(factory: Callable[..., Any], twin: nn.Module) -> Any:  # Any: not yet known to be optimizers
    """What a factory makes of a model; torch's own classes take its parameters."""
    kind: Any = getattr(factory, "func", factory)  # Any: of a `functools.partial`
    plain = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if plain and not issubclass(kind, NaturalGradient | JointNaturalGradient):
        return factory([p for p in twin.parameters() if p.requires_grad])
    return factory(twin)


def _moved(optimizer: torch.optim.Optimizer, model: nn.Module, twin: nn.Module) -> torch.optim.Optimizer:
    """An optimizer of the same kind and options for the copy of its model."""
    places = {id(p): q for p, q in zip(model.parameters(), twin.parameters(), strict=True)}
    if any(id(p) not in places for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the optimizer has a parameter that is not the model's: give the model that it trains")
    groups = [{**group, "params": [places[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    if isinstance(optimizer, NaturalGradient):
        return NaturalGradient(
            twin,
            groups=groups,
            defaults=optimizer.defaults,
            solver=optimizer.solver,
            damping=optimizer.damping,
            policy=optimizer.policy,
        )
    moved = copy.copy(optimizer)
    moved.param_groups = groups
    return moved


def _rebuilt(optimizer: NaturalGradient, solver: Any, policy: Policy) -> NaturalGradient:  # Any: a solver
    """The same with another solver and policy, in its long run from the first step on."""
    return NaturalGradient(
        optimizer.model,
        groups=[dict(group) for group in optimizer.param_groups],
        defaults=optimizer.defaults,
        solver=solver,
        damping=optimizer.damping,
        policy=replace(policy, patience=0, adapt=None, distributed=False),
    )


def _update(optimizer: Any, twin: nn.Module) -> Work:  # Any: whatever a factory made
    """One update of an optimizer that leaves gradients as they are."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be, or make, a torch.optim.Optimizer; got {type(optimizer).__name__}")
    own = {id(p) for p in twin.parameters()}
    if any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the callable must make the optimizer of the model that it is given, which is a copy without values")
    work = update_work(optimizer)
    if work is None:
        known = ", ".join(UPDATES)
        raise ValueError(
            f"the work of {type(optimizer).__name__} is not counted; counted are hb.KFAC and its relatives, {known}, Muon"
        )
    return work


def _machines_in(solver: object) -> list[Machine]:
    """The machines that a solver holds, however deep."""
    if isinstance(solver, Machine):
        return [solver]
    parts = solver if isinstance(solver, tuple | list) else [getattr(solver, f.name) for f in _fields(solver)]
    return [machine for part in parts for machine in _machines_in(part)]


def _with_machines(solver: Any, change: Callable[[Machine], Machine]) -> Any:  # Any: a solver, or a part of one
    """The same solver with other machines."""
    if isinstance(solver, Machine):
        return change(solver)
    if isinstance(solver, tuple | list):
        return type(solver)(_with_machines(part, change) for part in solver)
    held = [f.name for f in _fields(solver) if _machines_in(getattr(solver, f.name))]
    changes = {name: _with_machines(getattr(solver, name), change) for name in held}
    return replace(solver, **changes) if changes else solver


def _fields(value: object) -> tuple[Any, ...]:  # Any: fields
    return tuple(f for f in fields(value) if f.init) if is_dataclass(value) and not isinstance(value, type) else ()


# --- a period -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    """What one step asked for: by its passes and captures, and by `step`."""

    further: Work
    capture: Work
    rest: Work

    def sorted(self, passes: Work, apply: Work, first: Work, second: Work) -> StepWork:
        """By phase; `apply` is what a step without refresh asks for."""
        refresh = self.rest - apply
        programmed = {job: count for job, count in refresh.jobs.items() if job.upload_bits > 0}
        return StepWork(
            passes=passes + self.further,
            apply=Work(apply.kernels),
            capture=self.capture,
            refresh=Work(refresh.kernels),
            programming=Work(jobs=programmed),
            inversion=Work(jobs={job: count for job, count in refresh.jobs.items() if job not in programmed}),
            first=first,
            second=second,
        )


def _common(one: Work, other: Work) -> Work:
    """What both hold: where refreshes are staggered, what every step asks for."""
    kernels = {kernel: min(count, other.kernels[kernel]) for kernel, count in one.kernels.items() if kernel in other.kernels}
    return Work(kernels, {job: min(count, other.jobs[job]) for job, count in one.jobs.items() if job in other.jobs})


def _period(
    optimizer: NaturalGradient, loss: Loss, batch: Batch, further: Mapping[Pass, Work], steps: int, *, first: int
) -> list[_Made]:
    """What some steps ask for after the first ones, in which solver states start from nothing."""
    made = [_step(optimizer, loss, batch, further) for _ in range(first + steps)]
    optimizer.detach()
    return made[first:]


def _step(optimizer: NaturalGradient, loss: Loss, batch: Batch, further: Mapping[Pass, Work]) -> _Made:
    """One step of an ordinary loop; forward and backward are made again only where the optimizer looks at them."""
    policy, work, passes = optimizer.policy, optimizer.work, optimizer.passes
    if optimizer.steps == 0 or optimizer.capture.enabled or policy.fisher.observes or policy.quadratic is not None:
        optimizer.zero_grad()
        loss(optimizer.observe(optimizer.model(*batch[:-1]), batch[-1]), batch[-1]).backward()
    captured = optimizer.work
    optimizer.step()
    more = {kind: count - passes.get(kind, 0) for kind, count in optimizer.passes.items()}
    asked = sum((further[kind] * count for kind, count in more.items() if count), Work())
    return _Made(asked, captured - work, optimizer.work - captured)


def _count_layerwise(
    given: NaturalGradient, loss: Loss, batch: Batch, passes: Work, machine: Machine | MachineSpec | None
) -> tuple[list[StepWork], MachineSpec | None]:
    """Step through the long run until it repeats."""
    solver, spec = _fitted(given.solver, machine)
    given.detach()
    model = given.model
    policy, further = given.policy, pass_work(model, given, loss, batch)
    captures = -(-policy.refresh_every // policy.factor_every)  # from one refresh to the next
    if policy.stagger:
        period = math.lcm(policy.factor_every, max(policy.factor_every, policy.refresh_every))
        made = _period(_rebuilt(given, solver, policy), loss, batch, further, period, first=2 * period)
        plain = reduce(_common, [each.rest for each in made])
    else:  # a step with a refresh, one with a capture alone, and one with neither: no need to wait for them
        kinds = min(captures, 2)
        short = replace(policy, factor_every=2, refresh_every=2 * kinds)
        renewing = _period(_rebuilt(given, solver, short), loss, batch, further, 2 * kinds, first=2 * kinds)
        plain, between = renewing[1].rest, [renewing[1]] * (policy.factor_every - 1)
        made = [renewing[0], *between, *[renewing[-2], *between] * (captures - 1)]
    first, second = split_sides(Work(jobs=plain.jobs), [(stack.domain, stack.length) for stack in given.stacks])
    steps = [each.sorted(passes, plain, first, second) for each in made]
    if policy.adapt is None:
        return steps, spec
    steps = steps * (math.lcm(len(steps), policy.adapt.every) // len(steps))
    twice = further[Pass.EVALUATE] * 2
    for i in range(0, len(steps), policy.adapt.every):
        steps[i] = replace(steps[i], passes=steps[i].passes + twice)
    return steps, spec


def _fitted(solver: Any, machine: Machine | MachineSpec | None) -> tuple[Any, MachineSpec | None]:  # Any: a solver
    """The solver on the machine that is asked for, emulated without a look at values; and that machine."""
    specs = {held.spec for held in _machines_in(solver)}
    if machine is None:
        if len(specs) > 1:
            raise ValueError("the solver works on several machines: say by machine= which one to count all of them as")
        return _with_machines(solver, lambda held: Machine(held.spec, serial=held.serial, tolerance=0)), next(iter(specs), None)
    spec = machine.spec if isinstance(machine, Machine) else machine
    if not isinstance(spec, MachineSpec):
        raise TypeError(f"machine must be a Machine or a MachineSpec, got {type(machine).__name__}")
    if not specs:
        hint = "give the optimizer solver=hb.ThermodynamicInverse(machine), or leave machine= out"
        raise ValueError(f"no machine takes part in {type(solver).__name__}: {hint}")
    return _with_machines(solver, lambda held: Machine(spec, serial=held.serial, tolerance=0)), spec
