"""Converters between numbers and voltages, uniform and mid-tread, with the full scale at the outermost code.

With b bits there are 2ᵇ − 1 levels, symmetric about 0, LSB = full scale / (2ᵇ⁻¹ − 1); rounding errs by LSB/√12 rms. A value
beyond full scale clips and is counted. Averages of k reads that are quantized one by one equal the true average plus white
noise of variance LSB²/12k once the noise of one read is 0.5 LSB or more (it dithers the converter: bias below 1 % of an LSB, by
Σ (−1)ʲ sin(2πjx/LSB) e^{−2π²j²σ²/LSB²} LSB/πj). Below that reads must be simulated one by one. An analog average that is
converted once is not dithered at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

DITHERED = 0.5  # noise of one read, in LSB, from which quantization is white noise
STILL = 0.05  # noise of one read, in LSB, below which all reads give one code


def lsb(bits: int, full_scale: Tensor | float = 1.0) -> Tensor | float:
    """The step of a converter of `bits` bits, sign included."""
    return full_scale / (2 ** (bits - 1) - 1)


def quantize(
    values: Tensor, bits: int | None, full_scale: Tensor | float = 1.0, *, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a converter makes of `values`, and which of them clipped.

    Args:
        values: any shape.
        bits: bits, sign included; None: an ideal converter, which neither rounds nor clips.
        full_scale: largest magnitude, a number or a tensor that broadcasts.
        noise: uniform in [0, 1), of the shape of `values`, for stochastic rounding; None: to nearest.

    Returns:
        The values and a bool mask of those beyond full scale.
    """
    if bits is None:
        return values, torch.zeros_like(values, dtype=torch.bool)
    step = lsb(bits, full_scale)
    top = 2 ** (bits - 1) - 1
    codes = torch.round(values / step) if noise is None else torch.floor(values / step + noise)
    return codes.clamp(-top, top) * step, values.abs() > full_scale * (1 + 1e-6)


def power_of_two(ratio: Tensor) -> Tensor:
    """The smallest power of two that is at least `ratio`; 1 where `ratio` is not positive and finite."""
    good = torch.isfinite(ratio) & (ratio > 0)
    return torch.exp2(torch.ceil(torch.log2(torch.where(good, ratio, 1.0))))


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of the dtype and device of `like`, from a generator of any device (None: torch's own)."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Numbers uniform in [0, 1), as `normal`."""
    device = like.device if generator is None else generator.device
    return torch.rand(shape, dtype=like.dtype, device=device, generator=generator).to(like.device)
