"""What optimizers with curvature have in common, layerwise and joint: their books, and their place in a `state_dict`.

`torch.optim.Optimizer.load_state_dict` casts floating state to the parameters' dtype, which would turn float32 factors of bf16
weights into bf16; so curvature travels beside it, in a form that `torch.load(weights_only=True)` reads: in the first parameter
group of a `state_dict`, under a key of its own, where `torch.distributed.checkpoint` keeps it. That loads into the nested dicts
and lists of a fresh optimizer, key by key; so everything whose form depends on the past (counters, statistics) is one text in
JSON, `"past"`, and the rest has the same keys from the first step on.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

import torch

from heatbath.optim.tally import Tally
from heatbath.solvers import Solver
from heatbath.work import Work

FORMAT = 2  # of what `state_dict` adds to torch's; 1 was version 0.1, with momentum by stack


class CurvatureOptimizer(torch.optim.Optimizer):
    """An optimizer that counts its work and saves what it knows about curvature.

    Attributes:
        KEY: of its own state in the first parameter group of a `state_dict`.
        OWN: attributes that make it up, beside torch's own; all others are found from these.
    """

    KEY: ClassVar[str]
    OWN: ClassVar[tuple[str, ...]]
    solver: Solver[Any]  # Any: any state
    generator: torch.Generator | None
    steps: int
    _tally: Tally

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
