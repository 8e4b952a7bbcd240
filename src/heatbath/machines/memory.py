"""How a matrix becomes what the cells hold: scale, clip, quantize, mismatch."""

from __future__ import annotations

import torch
from torch import Tensor

from heatbath.machines.converters import quantize, uniform
from heatbath.machines.imperfections import GAIN, mismatch_like
from heatbath.machines.spec import MachineSpec


def check_matrix(matrix: Tensor, spec: MachineSpec, *, values: bool = True) -> None:
    """Refuse what cannot be programmed.

    Args:
        matrix: meant to be `[*stack, n, n]`.
        spec: the machine.
        values: also look at the values, which waits for the device.

    Raises:
        TypeError: not a tensor, or not float32 or float64.
        ValueError: not square, empty, larger than the machine, not finite, not symmetric.
    """
    if not isinstance(matrix, Tensor):
        raise TypeError(f"a matrix must be a torch.Tensor, got {type(matrix).__name__}")
    if matrix.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"a matrix must be float32 or float64, got {matrix.dtype}; convert it with .float()")
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.numel() == 0:
        raise ValueError(f"a machine needs square matrices [*stack, n, n], got shape {tuple(matrix.shape)}")
    n = matrix.shape[-1]
    if spec.cells is not None and n > spec.cells:
        raise ValueError(
            f"a matrix of size {n} needs {n} cells, machine {spec.name!r} has {spec.cells}; "
            "use a larger machine, split the matrix into blocks, or leave this layer to a digital solver"
        )
    if values:
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError("the matrix holds NaN or inf; look at the gradients or activations it was made from")
        size = matrix.abs().amax((-2, -1))
        skew = (matrix - matrix.mT).abs().amax((-2, -1))
        if bool((skew > torch.finfo(matrix.dtype).eps ** 0.5 * size).any()):
            worst = float((skew / size).nan_to_num().max())
            raise ValueError(f"the matrix is not symmetric: |A − Aᵀ| reaches {worst:.1e} of its largest entry; use (A + Aᵀ)/2")


def hold(
    matrix: Tensor, spec: MachineSpec, serial: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What the cells hold of `matrix`.

    Args:
        matrix: A, `[*stack, n, n]`.
        spec: the machine.
        serial: serial number of the first machine of the stack.
        generator: source of randomness for stochastic rounding.

    Returns:
        Â `[*stack, n, n]` with entries up to 1, the scale s `[*stack]` with A ≈ s Â, and the number of clipped entries `[*stack]`.
    """
    stack, n = matrix.shape[:-2], matrix.shape[-1]
    size = matrix.abs()
    if spec.matrix_percentile is None:
        scale = size.amax((-2, -1))
    else:
        rank = max(1, round(spec.matrix_percentile / 100 * n * n))
        scale = size.reshape(*stack, n * n).kthvalue(rank, dim=-1).values
    scale = torch.where(scale > 0, scale, 1.0)
    unit = (matrix + matrix.mT) / (2 * scale[..., None, None])
    beyond = unit.abs() > 1 + 1e-6
    held = unit.clamp(-1, 1)
    if spec.matrix_bits is not None:
        noise = None
        if spec.stochastic_rounding:
            noise = uniform(tuple(held.shape), held, generator)
            noise = noise.triu() + noise.triu(1).mT
        held = quantize(held, spec.matrix_bits, noise=noise)[0]
    if spec.gain_mismatch is not None:
        held = held * (1 + spec.gain_mismatch * mismatch_like(held, serial, GAIN, stack, (n, n)))
    return held, scale, beyond.sum((-2, -1))
