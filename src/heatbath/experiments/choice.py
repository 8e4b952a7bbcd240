"""An optimizer, completely specified: what a run is made with and its record says.

Every default is filled in when a `Choice` is made (`heatbath.experiments.optimizers.choose`), so a record of it says what was
run, whatever the defaults are later.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from heatbath.experiments.experiment import Hyper
from heatbath.machines import MachineSpec, machine_toml, spec_from

TITLES = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "nadamw": "NAdamW",
    "muon": "Muon + AdamW",
    "soap": "SOAP",
    "singd": "SINGD",
    "kfac": "K-FAC",
    "kfac-quadratic": "K-FAC, quadratic model",
    "ngd": "NGD",
    "tngd": "TNGD",
    "cholesky": "Cholesky",
    "conjugate-gradient": "conjugate gradients",
    "thermodynamic-inverse": "thermodynamic inverse",
    "thermodynamic-solve": "thermodynamic solve",
}


@dataclass(frozen=True)
class Choice:
    """An optimizer, completely specified.

    Args:
        optimizer: a key of `OPTIMIZERS`.
        hyper: its hyper-parameters.
        solver: a key of `SOLVERS`, for optimizers with curvature; else None.
        machine: the machine of a thermodynamic solver; else None.
    """

    optimizer: str
    hyper: Hyper
    solver: str | None = None
    machine: MachineSpec | None = None

    @property
    def label(self) -> str:
        """A short name for files and legends, such as "kfac-thermodynamic-solve-tngd-2024-8bit"."""
        parts = [self.optimizer, self.solver, self.machine.name if self.machine else None]
        if self.machine is not None and self.machine.matrix_bits is not None:
            parts.append(f"{self.machine.matrix_bits}bit")
        return "-".join(part for part in parts if part)

    @property
    def title(self) -> str:
        """The same for people, such as "K-FAC, thermodynamic solve (tngd-2024, 8 bits)"."""
        words = TITLES.get(self.optimizer, self.optimizer)
        if self.solver is not None:
            words += ", " + TITLES.get(self.solver, self.solver)
        if self.machine is not None:
            bits = self.machine.matrix_bits
            words += f" ({self.machine.name}{'' if bits is None else f', {bits} bits'})"
        return words

    def advice(self) -> str:
        """What to change when training goes wrong."""
        words = f"lower --lr (now {self.hyper.lr:g})"
        if self.hyper.damping is not None:
            words += f" or raise --damping (now {self.hyper.damping:g})"
        if self.machine is not None and self.machine.matrix_bits is not None:
            words += f" or --bits (now {self.machine.matrix_bits})"
        return words

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Plain values for a record; the machine as the text of its TOML file."""
        return {
            "optimizer": self.optimizer,
            "solver": self.solver,
            "machine": machine_toml(self.machine) if self.machine else None,
            **asdict(self.hyper),
        }


def choice_from_json(plain: Mapping[str, Any]) -> Choice:  # Any: JSON values
    """The inverse of `Choice.to_json`.

    Raises:
        KeyError: a field is missing.
    """
    hyper = Hyper(**{field.name: plain[field.name] for field in fields(Hyper)})
    machine = plain["machine"]
    return Choice(plain["optimizer"], hyper, plain["solver"], spec_from(tomllib.loads(machine)) if machine else None)
