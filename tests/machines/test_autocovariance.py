"""A machine's covariance with itself a moment later decays as the exponential of what it holds."""

from __future__ import annotations

import pytest
import torch

from heatbath.machines import FastLaw, Machine, MachineSpec, read_autocovariance
from heatbath.machines.autocovariance import _lagged_products

TAU = 1e-6
NOISY = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.1))
MATRIX = torch.tensor([[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.6]], dtype=torch.float64)


def fresh(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("lag", [0.2, 1.5])
def test_covariance_at_a_lag_is_the_stationary_one_times_the_decay(lag: float) -> None:
    copies, pairs = 200, 300
    programmed = NOISY.program(MATRIX.expand(copies, 3, 3))
    reading = read_autocovariance(NOISY, programmed, pairs=pairs, lag=lag * TAU, burn_in=100 * TAU, generator=fresh())
    want = torch.linalg.inv(MATRIX) @ torch.linalg.matrix_exp(-lag * MATRIX)
    mean, scatter = reading.covariance.mean(0), reading.covariance.std(0) / copies**0.5
    assert (((mean - want) / scatter).abs() < 4).all()
    assert not reading.diverged.any()
    assert reading.tier == "exact law"


def test_chunks_of_reads_lose_no_pair() -> None:
    rows = torch.randn(2, 11, 3, generator=fresh(), dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.int64)
    got, clipped = _lagged_products((part, zero + 1) for part in rows.split([4, 1, 6], -2))
    torch.testing.assert_close(got, rows[:, :-1].mT @ rows[:, 1:], rtol=1e-12, atol=1e-12)
    assert clipped.tolist() == [3, 3]


def test_long_watches_span_several_chunks() -> None:
    programmed = NOISY.program(MATRIX)
    reading = read_autocovariance(NOISY, programmed, pairs=700, lag=TAU, burn_in=100 * TAU, generator=fresh())
    want = torch.linalg.inv(MATRIX) @ torch.linalg.matrix_exp(-MATRIX)
    assert (reading.covariance - want).norm() / want.norm() < 0.5  # 700 pairs of modes that relax within 3 reads
    assert reading.work.conversions == 3 * 701


def test_converters_take_every_read() -> None:
    spec = MachineSpec(name="coarse", tau=TAU, noise_volts_rms=0.1, read_bits=3, read_noise_volts_rms=0.02, rail_volts=1.0)
    coarse = Machine(spec)
    quiet, rough = (
        read_autocovariance(m, m.program(MATRIX), pairs=2000, lag=TAU, burn_in=100 * TAU, generator=fresh())
        for m in (NOISY, coarse)
    )
    assert rough.read_clipped.dtype == torch.int64
    assert quiet.read_clipped.item() == 0
    want = torch.linalg.inv(MATRIX) @ torch.linalg.matrix_exp(-MATRIX)
    for reading in (quiet, rough):  # a converter's errors are independent from read to read: no bias at a lag
        assert (reading.covariance - want).norm() / want.norm() < 0.3


def test_work_is_one_watch() -> None:
    programmed = NOISY.program(MATRIX.expand(4, 3, 3))
    work = read_autocovariance(NOISY, programmed, pairs=10, lag=2 * TAU, burn_in=50 * TAU, generator=fresh()).work
    ((job, count),) = work.jobs.items()
    assert (count, job.drives, job.conversions_out, job.upload_bits) == (4, 1, 33, 0.0)
    assert job.settle_seconds == 50 * TAU
    assert job.read_seconds == pytest.approx(20 * TAU)


def test_offsets_and_dead_cells_are_in_what_is_read() -> None:
    spec = MachineSpec(name="offset", tau=TAU, noise_volts_rms=1e-6, offset_mismatch=0.1, dead_converters=0.5)
    machine = Machine(spec, serial=1)
    programmed = machine.program(MATRIX)
    mean = torch.linalg.solve(MATRIX, programmed.offset)
    alive = torch.ones(3, dtype=torch.float64).masked_fill(programmed.cells.mute, 0.0)
    assert 0 < alive.sum() < 3
    reading = read_autocovariance(machine, programmed, pairs=5, lag=TAU, burn_in=100 * TAU, generator=fresh())
    want = torch.outer(mean * alive, mean * alive) / machine.spec.noise
    torch.testing.assert_close(reading.covariance, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())


@pytest.mark.parametrize(
    "machine,options,message",
    [
        (Machine(MachineSpec(name="quiet", tau=TAU)), {}, r"machine 'quiet' has no noise to watch"),
        (NOISY, {"pairs": 0}, r"pairs >= 1 and lag > 0 s, got 0 and 1e-06"),
        (NOISY, {"lag": 0.0}, r"pairs >= 1 and lag > 0 s, got 5 and 0.0"),
        (NOISY, {"law": FastLaw}, r"needs a law that knows its modes, got the fast law; program without a schedule"),
    ],
)
def test_bad_requests_are_refused(machine: Machine, options: dict[str, object], message: str) -> None:
    programmed = machine.program(MATRIX, law=options.get("law"))
    asked = {"pairs": 5, "lag": TAU, "burn_in": TAU, **{k: v for k, v in options.items() if k != "law"}}
    with pytest.raises(ValueError, match=message):
        read_autocovariance(machine, programmed, **asked)
