"""What optimizers with curvature have in common, layerwise and joint: the step, their statistics, their `state_dict`.

`torch.optim.Optimizer.load_state_dict` casts floating state to the parameters' dtype, which would turn float32 factors of bf16
weights into bf16; so curvature travels beside it, in a form that `torch.load(weights_only=True)` reads: in the first parameter
group of a `state_dict`, under a key of its own, where `torch.distributed.checkpoint` keeps it. That loads into the nested dicts
and lists of a fresh optimizer, key by key; so everything whose form depends on the past (counters, statistics) is one text in
JSON, `"past"`, and the rest has the same keys from the first step on.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from heatbath.curvature import norms
from heatbath.optim.damping import LevenbergMarquardt
from heatbath.optim.scaling import LossScale, loss_scale
from heatbath.optim.tally import Pass, Tally
from heatbath.solvers import Solver
from heatbath.work import Work

FORMAT = 2  # of what `state_dict` adds to torch's; 1 was version 0.1, with momentum by stack


class CurvatureOptimizer(torch.optim.Optimizer):
    """An optimizer that counts its work and saves what it knows about curvature.

    Attributes:
        KEY: of its own state in the first parameter group of a `state_dict`.
        OWN: attributes that make it up, beside torch's own; all others are found from these.
        scaler: the GradScaler that scales the loss, if any; needed only where something else than `scaler.step` calls `step`.
    """

    KEY: ClassVar[str]
    OWN: ClassVar[tuple[str, ...]]
    solver: Solver[Any]  # Any: any state
    generator: torch.Generator | None
    steps: int
    scaler: torch.amp.GradScaler | None = None
    _tally: Tally

    @torch.no_grad()
    def step(
        self, closure: Callable[[], Any] | None = None, *, evaluate: Callable[[], Tensor] | None = None
    ) -> Any:  # Any: closure's
        """One update of every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss; called once.
            evaluate: returns the loss of the same batch at the present parameters, without backward; called before and after
                the update on the steps where damping adapts (`Policy.adapt`), without gradients.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: damping adapts and there is no `evaluate`; for `NGD` and `TNGD`, nothing was observed, or outputs differ
                when the model is run again.
        """
        adapt = self.adaptation
        if adapt is not None and evaluate is None:
            raise ValueError("damping adapts by the loss after a step: call step(evaluate=lambda: loss_fn(model(x), y))")
        loss = loss_of(closure)
        if not self.bring_up_to_date(loss_scale(self, self.scaler)):  # no gradients, an overflow, or a dry run
            return loss
        if adapt is not None and evaluate is not None and adapt.due(self.steps):
            count = self._count()
            before = objective(evaluate, self.param_groups, count)
            predicted = self._apply(predict=True)
            adapt.renew(self.param_groups, (before - objective(evaluate, self.param_groups, count)) / predicted)
            self._tally.add_passes({Pass.EVALUATE: 2})
        else:
            self._apply()
        self.finish_step()
        return loss

    @property
    @abstractmethod
    def adaptation(self) -> LevenbergMarquardt | None:
        """What adapts λ, if anything does."""

    @abstractmethod
    def bring_up_to_date(self, scale: LossScale, /) -> bool:
        """Bring gradients and curvature up to date; false where there is nothing to do."""

    @abstractmethod
    def finish_step(self) -> None:
        """Count a step, and forget what belongs to it."""

    @abstractmethod
    def _count(self) -> int | Tensor:
        """What gradients are divided by to be those of a mean."""

    @abstractmethod
    def _apply(self, *, predict: bool = False) -> Tensor:
        """Solve, and move all parameters; returns the predicted reduction of the loss, 0-d, if asked to, else 0."""

    @property
    def work(self) -> Work:
        """Everything this optimizer asked of hardware so far, passes through the model aside."""
        return self._tally.work

    def report(self) -> dict[str, float | str]:
        """Refreshes, outcomes, skipped and clipped steps, notes of the solver; waits for the device."""
        return self._tally.report()

    def state_dict(self) -> dict[str, Any]:  # Any: torch's own type
        """Everything needed to go on bit-equal, once `step` is done: groups, torch's state, curvature, counters."""

        def add(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
            state["param_groups"][0][self.KEY] = self._save()

        first = self.register_state_dict_post_hook(add, prepend=True)  # users' hooks see all
        try:
            state: dict[str, Any] = super().state_dict()
        finally:
            first.remove()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # Any: torch's own type
        """Restore from `state_dict`; curvature of another precision is cast to that of this model.

        Raises:
            ValueError: it is of another kind of optimizer, of a model with other layers, or of another solver.
        """
        own: dict[str, Any] = {}

        def take(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            found = next((group[self.KEY] for group in state["param_groups"] if self.KEY in group), None)
            if found is None:
                raise ValueError("this state_dict holds no curvature: it was not saved by this kind of optimizer")
            self._check_common(found)
            self._check(found)
            own.update(found)
            groups = [{k: v for k, v in group.items() if k != self.KEY} for group in state["param_groups"]]
            return {**state, "param_groups": groups}

        last = self.register_load_state_dict_pre_hook(take)  # after users' hooks, which see all
        first = self.register_load_state_dict_post_hook(lambda _: self._restore(own), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()
            first.remove()

    def __getstate__(self) -> dict[str, Any]:  # Any: attributes
        return {name: self.__dict__[name] for name in ("defaults", "state", "param_groups", *self.OWN)}

    def _past(self, **more: Any) -> str:  # Any: JSON values
        """What depends on the past, as JSON."""
        common = {"format": FORMAT, "solver": solver_spec(self.solver), "steps": self.steps, "tally": self._tally.state_dict()}
        return json.dumps({**common, **more})

    def _check_common(self, own: dict[str, Any]) -> None:  # Any: plain Python and tensors
        """Refuse a state of a later format or of another solver.

        Raises:
            ValueError: it is.
        """
        past = json.loads(own["past"])
        if past.get("format", 1) > FORMAT:
            raise ValueError(
                f"this state_dict has format {past['format']}, this version of heatbath reads formats up to {FORMAT}: update it"
            )
        if past["solver"] != solver_spec(self.solver):
            raise ValueError(
                f"this state_dict was saved with the solver {past['solver']}, this optimizer has {solver_spec(self.solver)}: "
                "build it with the solver it was saved with"
            )

    def _load_common(self, own: dict[str, Any]) -> dict[str, Any]:  # Any: plain Python and tensors
        """Take over what all of them save; returns the past."""
        past: dict[str, Any] = json.loads(own["past"])
        self.steps = past["steps"]
        self._tally.load_state_dict(past["tally"])
        if self.generator is not None and own["generator"] is not None:
            self.generator.set_state(own["generator"].cpu())
        return past

    def _init_param_state(self) -> None:
        """An entry of state for each parameter, as `torch.distributed.checkpoint` expects."""
        for p in (p for group in self.param_groups for p in group["params"] if p.requires_grad):
            self.state[p]  # a defaultdict

    @abstractmethod
    def _save(self) -> dict[str, Any]:  # Any: plain Python and tensors
        """Its own state."""

    @abstractmethod
    def _check(self, own: dict[str, Any], /) -> None:  # Any: as above
        """Raise `ValueError` where a saved state does not fit, before anything is changed."""

    @abstractmethod
    def _restore(self, own: dict[str, Any], /) -> None:  # Any: as above
        """Take over a saved state that fits."""


def objective(
    evaluate: Callable[[], Tensor], groups: Sequence[dict[str, Any]], count: int | Tensor
) -> Tensor:  # Any: torch's own type
    """The loss as a mean over examples, with the L2 penalties that gradients include, 0-d; `count` divides a summed loss."""
    value = torch.as_tensor(evaluate()).detach() / count
    for group in groups:
        if group["l2"]:
            value = value + 0.5 * group["l2"] * torch.stack(norms(group["params"])).square().sum()
    return value


def solver_spec(solver: Solver[Any]) -> str:  # Any: any state
    """Which solvers are inside which, whatever their options: what decides the form of a state."""
    parts: list[Any] = [getattr(solver, f.name) for f in fields(solver)] if is_dataclass(solver) else []  # Any: options
    return f"{type(solver).__name__}({', '.join(solver_spec(part) for part in parts if isinstance(part, Solver))})"


def loss_of(closure: Callable[[], Any] | None) -> Any:  # Any: closure's
    """What a closure returns when it is called with gradients on, or None."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
