"""What optimizers with curvature have in common, layerwise and joint: their books, and their place in a `state_dict`.

Curvature lies in the first parameter group of a `state_dict`, under a key of its own, where `torch.distributed.checkpoint`
keeps it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from heatbath.optim.tally import Tally
from heatbath.work import Work


class CurvatureOptimizer(torch.optim.Optimizer):
    """An optimizer that counts its work and saves what it knows about curvature.

    Attributes:
        KEY: of its own state in the first parameter group of a `state_dict`.
        OWN: attributes that make it up, beside torch's own; all others are found from these.
    """

    KEY: ClassVar[str]
    OWN: ClassVar[tuple[str, ...]]
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
        state = super().state_dict()
        state["param_groups"][0][self.KEY] = self._save()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # Any: torch's own type
        """Restore from `state_dict`; dtypes of curvature stay as they were saved.

        Raises:
            ValueError: it is of another kind of optimizer, of a model with other layers, or of another solver.
        """
        own = next((group[self.KEY] for group in state_dict["param_groups"] if self.KEY in group), None)
        if own is None:
            raise ValueError("this state_dict holds no curvature: it was not saved by this kind of optimizer")
        self._check(own)
        groups = [{k: v for k, v in group.items() if k != self.KEY} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})
        self._restore(own)

    def __getstate__(self) -> dict[str, Any]:  # Any: attributes
        return {name: self.__dict__[name] for name in ("defaults", "state", "param_groups", *self.OWN)}

    @abstractmethod
    def _save(self) -> dict[str, Any]:  # Any: plain Python and tensors
        """Its own state."""

    @abstractmethod
    def _check(self, own: dict[str, Any], /) -> None:  # Any: as above
        """Raise `ValueError` where a saved state does not fit, before anything is changed."""

    @abstractmethod
    def _restore(self, own: dict[str, Any], /) -> None:  # Any: as above
        """Take over a saved state that fits."""


def loss_of(closure: Callable[[], Any] | None) -> Any:  # Any: closure's
    """What a closure returns when it is called with gradients on, or None."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
