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

DITHER_MIN_LSB = 0.5  # noise of one read from which quantization is white noise
STILL_MAX_LSB = 0.05  # noise of one read below which all reads give one code


def lsb(bits: int, full_scale: Tensor | float = 1.0) -> Tensor | float:
    """The step of a converter of `bits` bits, sign included."""
    return full_scale / (2 ** (bits - 1) - 1)


def encode(
    values: Tensor, bits: int | None, full_scale: Tensor | float = 1.0, *, noise: Tensor | None = None
) -> tuple[Tensor, Tensor | float, Tensor]:
    """The codes that a converter makes of `values`.

    Args:
        values: any shape.
        bits: bits, sign included; None: an ideal converter, whose "codes" are the values themselves.
        full_scale: largest magnitude, a number or a tensor that broadcasts.
        noise: uniform in [0, 1), of the shape of `values`, for stochastic rounding; None: to nearest.

    Returns:
        Codes (whole numbers of the dtype of `values`), what one stands for, and a bool mask of values beyond full scale.
    """
    if bits is None:
        return values, 1.0, torch.zeros_like(values, dtype=torch.bool)
    step = lsb(bits, full_scale)
    top = 2 ** (bits - 1) - 1
    codes = torch.round(values / step) if noise is None else torch.floor(values / step + noise)
    return codes.clamp(-top, top), step, values.abs() > full_scale * (1 + 1e-6)


def decode(codes: Tensor, bits: int | None) -> Tensor:
    """Values over full scale that codes stand for."""
    return codes if bits is None else codes * lsb(bits)


def quantize(values: Tensor, bits: int | None, full_scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """`values` as a converter leaves them, rounded to nearest, and a bool mask of those beyond full scale."""
    codes, step, over = encode(values, bits, full_scale)
    return codes * step, over


def power_of_two(ratio: Tensor) -> Tensor:
    """The smallest power of two that is at least `ratio`; 1 where `ratio` is not positive and finite."""
    good = torch.isfinite(ratio) & (ratio > 0)
    return torch.exp2(torch.ceil(torch.log2(torch.where(good, ratio, 1.0))))
