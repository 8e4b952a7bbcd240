"""How the cells of a machine differ from one another, in units of full scale and τ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heatbath.operators import tree


@tree
@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a stack of machines.

    Args:
        mobility: 1/c of each cell's capacitance c, relative to nominal, `[*stack, n]`.
        noise_intensity: variance of each cell's noise source relative to nominal, `[*stack, n]`.
        offset: drive that is always on, over full scale, `[*stack, n]`.
        working: which cells work, bool `[*stack, n]`.
        stuck_voltage: voltage over full scale of those that do not, 0 elsewhere, `[*stack, n]`.
        dead_adc: read converters that return 0, bool `[*stack, n]`.
        noise: 1/β, variance of a cell of conductance 1 over full scale squared.
        inertia: μ, inductive over resistive time; None: overdamped.
        capacitive: the matrix is held in capacitances.
        isotropic: all noise intensities are 1, so that modes stay independent.
        intact: all cells work.
    """

    mobility: Tensor
    noise_intensity: Tensor
    offset: Tensor
    working: Tensor
    stuck_voltage: Tensor
    dead_adc: Tensor
    noise: float = 0.0
    inertia: float | None = None
    capacitive: bool = False
    isotropic: bool = True
    intact: bool = True

    @staticmethod
    def alike(matrix: Tensor, *, noise: float = 0.0, inertia: float | None = None, capacitive: bool = False) -> Cells:
        """Cells without any difference, for matrices `[*stack, n, n]`."""
        ones = torch.ones_like(matrix[..., 0])
        zeros, never = torch.zeros_like(ones), torch.zeros_like(ones, dtype=torch.bool)
        return Cells(ones, ones, zeros, ~never, zeros, never, noise, inertia, capacitive)

    def embed(self, conductance: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix and constant drive of the cells that work, when the others are held at their voltages.

        Cells that do not work are decoupled (row and column of the identity); those beside them feel −Â_{rd} v_d.
        """
        if self.intact:
            return conductance, self.offset
        pair = self.working.unsqueeze(-1) & self.working.unsqueeze(-2)
        eye = torch.eye(conductance.shape[-1], dtype=conductance.dtype, device=conductance.device)
        offset = self.offset - (conductance @ self.stuck_voltage.unsqueeze(-1)).squeeze(-1)
        return torch.where(pair, conductance, eye), torch.where(self.working, offset, 0.0)

    def seen(self, rows: Tensor) -> Tensor:
        """Voltages `[*stack, …, n]` as they reach the converters: those of cells that do not work are fixed."""
        if self.intact:
            return rows
        between = (1,) * (rows.ndim - self.working.ndim)
        shape = (*self.working.shape[:-1], *between, self.working.shape[-1])
        return torch.where(self.working.reshape(shape), rows, self.stuck_voltage.reshape(shape))

    def converted(self, rows: Tensor) -> Tensor:
        """Codes `[*stack, …, n]` as converters that may be dead return them."""
        between = (1,) * (rows.ndim - self.dead_adc.ndim)
        return rows.masked_fill(self.dead_adc.reshape(*self.dead_adc.shape[:-1], *between, self.dead_adc.shape[-1]), 0.0)
