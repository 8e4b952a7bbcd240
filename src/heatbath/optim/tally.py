"""What an optimizer did: Work and passes on the host, outcomes and clips on the device until somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from heatbath.solvers import Outcome, Solution
from heatbath.work import Job, Kernel, Work


class Pass(Enum):
    """A pass through the model beside forward and backward of the loss; the value says it in words."""

    PULL = "backward of a vector at the outputs, for sampled and exact Fishers"
    LINEARIZE = "backward with its own graph, for the quadratic model"
    PUSH = "a direction through that graph, for the quadratic model"
    EVALUATE = "forward, for damping that adapts"


class Tally:
    """Running counts; adding never waits for a device, `report` does.

    Counts live as long as the optimizer and travel in its checkpoint.
    """

    def __init__(self) -> None:
        self._kernels: dict[Kernel, float] = {}
        self._jobs: dict[Job, float] = {}
        self.refreshes = 0
        self.passes: dict[Pass, int] = {}
        self.notes: dict[str, Any] = {}  # Any: what the solver last reported
        self._device: dict[str, Tensor] = {}

    @property
    def work(self) -> Work:
        """Everything asked of hardware so far."""
        return Work(self._kernels, self._jobs)

    def add_work(self, work: Work) -> None:
        """Add to the running total, in place."""
        for kernel, count in work.kernels.items():
            self._kernels[kernel] = self._kernels.get(kernel, 0) + count
        for job, count in work.jobs.items():
            self._jobs[job] = self._jobs.get(job, 0) + count

    def add_passes(self, passes: Mapping[Pass, int]) -> None:
        """Count passes through the model; what one takes, only the model knows."""
        for kind, count in passes.items():
            if count:
                self.passes[kind] = self.passes.get(kind, 0) + count

    def add_prepared(self, work: Work, codes: Tensor, clipped: Tensor | None = None) -> None:
        """Count one prepared stack, how its members ended, and what machines clipped; its owner counts the refresh."""
        self.add_work(work)
        self._count("prepare", codes)
        if clipped is not None:
            self._accumulate("notes.prepare.clipped", clipped.float())

    def add_solve(self, solution: Solution) -> None:
        """Count one solved stack."""
        self.add_work(solution.work)
        if solution.work.jobs:  # only a machine ends differently from solve to solve
            self._count("solve", solution.outcome)
        for name, note in solution.notes.items():
            if isinstance(note, Tensor):
                self._accumulate(f"notes.{name}", note.sum().float())
            else:
                self.notes[name] = note

    def add_step(self, scale: Tensor, finite: Tensor) -> None:
        """Count one step, whether it was finite, and how much trust shortened it."""
        self._accumulate("steps", torch.ones_like(scale))
        self._accumulate("skipped", (~finite).to(scale.dtype))
        shortened = torch.where(finite, scale, 1.0)
        self._accumulate("trust", shortened)
        self._accumulate("clipped", (shortened < 1).to(scale.dtype))

    def _count(self, kind: str, codes: Tensor) -> None:
        """Histogram of outcomes, on the device."""
        table = torch.arange(len(Outcome), dtype=torch.int8, device=codes.device)
        self._accumulate(kind, (codes.reshape(-1, 1) == table).sum(0).float())

    def _accumulate(self, name: str, value: Tensor) -> None:
        """Add to a device-side sum."""
        self._device[name] = self._device[name].to(value.device) + value if name in self._device else value

    def report(self) -> dict[str, float | str]:
        """Plain numbers for a log; reads the device."""
        sums = {name: value.detach().cpu() for name, value in self._device.items()}
        steps = float(sums.get("steps", torch.tensor(0.0)))
        result: dict[str, float | str] = {"refreshes": self.refreshes}
        result.update({f"passes.{kind.name.lower()}": float(count) for kind, count in self.passes.items()})
        for kind in ("prepare", "solve"):
            if kind in sums:
                result.update(
                    {f"{kind}.{o.name.lower()}": float(sums[kind][o.code]) for o in Outcome if float(sums[kind][o.code])}
                )
        if steps:
            result["skipped_steps"] = float(sums["skipped"])
            result["mean_trust"] = float(sums["trust"]) / steps
            result["clipped_share"] = float(sums["clipped"]) / steps
        result.update({name.removeprefix("notes."): float(v) for name, v in sums.items() if name.startswith("notes.")})
        result.update({name: str(note) for name, note in self.notes.items()})
        return result

    def state_dict(self) -> dict[str, Any]:  # Any: JSON
        """Plain numbers and texts; reads the device."""
        return {
            "work": self.work.to_json(),
            "refreshes": self.refreshes,
            "passes": {kind.name: count for kind, count in self.passes.items()},
            "device": {name: [str(value.dtype).removeprefix("torch."), value.tolist()] for name, value in self._device.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # Any: as above
        """From a checkpoint."""
        work = Work.from_json(state_dict["work"])
        self._kernels, self._jobs = dict(work.kernels), dict(work.jobs)
        self.refreshes = state_dict["refreshes"]
        self._device = {
            name: torch.tensor(values, dtype=getattr(torch, kind)) for name, (kind, values) in state_dict["device"].items()
        }
        self.passes = {Pass[name]: count for name, count in state_dict.get("passes", {}).items()}
