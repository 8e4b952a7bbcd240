"""Langevin dynamics with a nonlinear drift: cells whose pull is the gradient of an energy.

    τ dx = −∇U(x) dt + sqrt(2τ) dW,        stationary: p(x) ∝ exp(−U(x))

A machine for logistic regression holds the data matrix and passes Xx through saturating elements (arXiv 2410.01793); its
drift is not linear, so there is no closed law, and the emulator steps in time. It uses the scheme of Leimkuhler & Matthews
(2013, doi 10.1093/amrx/abs010)

    x ← x − h ∇U(x) + sqrt(h/2) (ξ_k + ξ_{k+1}),   ξ ~ N(0, I),  h in units of τ

whose stationary distribution errs by h² only (Euler–Maruyama: by h). Halve h to see what is left. Time is continuous on
the machine: h is a property of the emulation, not of the bill.

x is the voltage in units of √(1/β), that of a free cell of conductance 1. Readings go through the machine's read noise and
read converter, and clip at full scale, in these units; the data the machine holds are rounded by `LogisticRegression.rounded`.
Mismatch, dead cells, drift and rails are not emulated: they belong to a law of the matrix, and here there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from heatbath.machines import MachineSpec
from heatbath.machines.converters import quantize
from heatbath.machines.random import normal
from heatbath.samplers.gaussian import Draws, Gaussian
from heatbath.work import Job, Work


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """p(label = 1 | x) = σ(wᵀx) with w ~ N(0, s²I): the energy is minus the log posterior.

    Args:
        inputs: X, `[N, D]`.
        labels: 0 or 1, `[N]`, of the dtype of `inputs`.
        prior: s.

    Raises:
        ValueError: shapes that do not fit, labels that are not 0 or 1, a prior that is not positive.
    """

    inputs: Tensor
    labels: Tensor
    prior: float = 1.0

    def __post_init__(self) -> None:
        if self.inputs.ndim != 2 or self.labels.shape != self.inputs.shape[:1] or self.labels.dtype != self.inputs.dtype:
            raise ValueError(
                f"inputs [N, D] and labels [N] must fit and share a dtype, got {tuple(self.inputs.shape)} {self.inputs.dtype} "
                f"and {tuple(self.labels.shape)} {self.labels.dtype}"
            )
        if not bool(((self.labels == 0) | (self.labels == 1)).all()):
            raise ValueError("labels must be 0 or 1")
        if not self.prior > 0:
            raise ValueError(f"prior is a standard deviation and must be positive, got {self.prior}")

    def energy(self, weights: Tensor) -> Tensor:
        """U(w) = −Σ log p(label | x, w) + |w|²/2s², of `[*batch, D]`: `[*batch]`."""
        logits = weights @ self.inputs.mT
        return -logsigmoid((2 * self.labels - 1) * logits).sum(-1) + 0.5 * weights.square().sum(-1) / self.prior**2

    def gradient(self, weights: Tensor) -> Tensor:
        """∇U, `[*batch, D]`."""
        return (torch.sigmoid(weights @ self.inputs.mT) - self.labels) @ self.inputs + weights / self.prior**2

    def hessian(self, weights: Tensor) -> Tensor:
        """∇∇U at one point, `[D]` to `[D, D]`."""
        p = torch.sigmoid(self.inputs @ weights)
        hessian = self.inputs.mT @ (self.inputs * (p * (1 - p))[:, None])
        hessian.diagonal().add_(self.prior**-2)
        return hessian

    def rounded(self, bits: int) -> LogisticRegression:
        """The model that a machine holds whose couplings have so many bits, sign included; full scale is the largest input.

        Raises:
            ValueError: fewer than two bits.
        """
        if bits < 2:
            raise ValueError(f"couplings need at least 2 bits, sign included, got {bits}")
        return replace(self, inputs=quantize(self.inputs, bits, self.inputs.abs().max())[0])

    def laplace(self, *, iterations: int = 50) -> Gaussian:
        """The Gaussian at the mode, found by Newton's method with halved steps.

        Raises:
            RuntimeError: the mode was not found to 1e-6 of the start's gradient.
        """
        w = torch.zeros_like(self.inputs[0])
        first = float(self.gradient(w).norm())
        for _ in range(iterations):
            step = torch.linalg.solve(self.hessian(w), self.gradient(w))
            while float(self.energy(w - step)) > float(self.energy(w)) and float(step.norm()) > 1e-12:
                step = step / 2
            w = w - step
        if float(self.gradient(w).norm()) > 1e-6 * max(first, 1e-300):
            raise RuntimeError(f"no mode after {iterations} Newton steps; standardize the inputs or narrow the prior")
        hessian = self.hessian(w)
        return Gaussian(hessian, hessian @ w)


def langevin(
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    spec: MachineSpec,
    upload_bits: float,
    reads: int,
    interval: float,
    burn_in: float,
    step: float = 0.05,
    generator: torch.Generator | None = None,
) -> Draws:
    """Step cells with a nonlinear drift and read them.

    Args:
        gradient: ∇U of `[chains, n]`; scaled by the caller so that its largest curvature is about 1.
        start: first voltages, `[chains, n]`.
        spec: the machine: time constant, noise, read noise, read converter, bill.
        upload_bits: bits that program it, such as those of the data matrix.
        reads: samples of each chain.
        interval: seconds between reads.
        burn_in: seconds before the first.
        step: h, in units of τ; stable below 2 over the largest curvature.
        generator: source of randomness.

    Raises:
        ValueError: a machine without noise, no reads, times shorter than one step, a step that is not positive, or voltages
            that ran away.
    """
    if spec.noise == 0:
        raise ValueError(f"machine {spec.name!r} has no noise to sample; give it a temperature or noise_volts_rms")
    tau = spec.time_constant
    each, first = round(interval / (step * tau)) if step > 0 else 0, round(burn_in / (step * tau)) if step > 0 else 0
    if reads < 1 or each < 1 or first < 1:
        raise ValueError(f"langevin needs reads >= 1, step > 0, interval and burn_in of a step or more; got {reads}, {step}")
    x, shape = start.clone(), tuple(start.shape)
    before = normal(shape, x, generator)
    rows = []
    for k in range(1, first + each * (reads - 1) + 1):
        after = normal(shape, x, generator)
        x = x - step * gradient(x) + (step / 2) ** 0.5 * (before + after)
        before = after
        if k >= first and (k - first) % each == 0:
            rows.append(x)
    values = torch.stack(rows)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"voltages ran away at step h = {step}; it must stay below 2 over the largest curvature of the energy")
    values, clipped = _read(values, spec, generator)
    n = shape[-1]
    job = Job(
        spec.name,
        n,
        upload_bits=upload_bits,
        drives=1,
        read_bits=float(n * reads * (spec.read_bits or 32)),
        settle_seconds=burn_in,
        read_seconds=interval * (reads - 1),
        conversions_out=n * reads,
    )
    notes = {"tier": f"Leimkuhler–Matthews, h = {step:g} τ", "read_clipped": clipped}
    return Draws(values, Work.of(job, shape[0]), notes)


def _read(values: Tensor, spec: MachineSpec, generator: torch.Generator | None) -> tuple[Tensor, int]:
    """Voltages as the machine reads them, and how many clipped."""
    unit = spec.noise**0.5  # x = 1 over full scale
    volts = unit * values
    if spec.read_noise:
        volts = volts + spec.read_noise**0.5 * normal(tuple(volts.shape), volts, generator)
    measured, over = quantize(volts, spec.read_bits)
    return measured / unit, int(over.sum())
