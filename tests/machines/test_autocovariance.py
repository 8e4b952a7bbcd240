"""A machine's covariance with itself a moment later decays as the exponential of what it holds."""

from __future__ import annotations

import pytest
import torch

from heatbath.machines import Machine, MachineSpec
from heatbath.machines.oracle import oracle
from heatbath.machines.readout import LaggedMoment, Samples, SecondMoment

TAU = 1e-6
NOISY = Machine(MachineSpec(name="noisy", tau=TAU, noise_volts_rms=0.1))
MATRIX = torch.tensor([[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.6]], dtype=torch.float64)


def fresh(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("lag", [0.2, 1.5])
def test_covariance_at_a_lag_is_the_stationary_one_times_the_decay(lag: float) -> None:
    copies, pairs = 200, 300
    programmed = NOISY.program(MATRIX.expand(copies, 3, 3))
    reading = NOISY.read_autocovariance(programmed, pairs=pairs, lag=lag * TAU, burn_in=100 * TAU, generator=fresh())
    want = torch.linalg.inv(MATRIX) @ torch.linalg.matrix_exp(-lag * MATRIX)
    mean, scatter = reading.covariance.mean(0), reading.covariance.std(0) / copies**0.5
    assert (((mean - want) / scatter).abs() < 4).all()


def test_chunks_of_reads_lose_no_pair() -> None:
    reads = torch.randn(2, 4, 11, 3, generator=fresh(), dtype=torch.float64)
    lagged, second, samples = LaggedMoment(), SecondMoment(), Samples()
    for part in reads.split([4, 1, 6], -2):
        for observer in (lagged, second, samples):
            observer.observe(part)
    torch.testing.assert_close(lagged.total, (reads[..., :-1, :].mT @ reads[..., 1:, :]).sum(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(second.total, (reads.mT @ reads).sum(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(samples.values, reads)


def test_long_watches_span_several_chunks() -> None:
    programmed = NOISY.program(MATRIX)
    reading = NOISY.read_autocovariance(programmed, pairs=700, lag=TAU, burn_in=100 * TAU, generator=fresh())
    want = torch.linalg.inv(MATRIX) @ torch.linalg.matrix_exp(-MATRIX)
    assert (reading.covariance - want).norm() / want.norm() < 0.5  # 700 pairs of modes that relax within 3 reads
    assert reading.work.conversions == 3 * 701


def test_converters_take_every_read() -> None:
    spec = MachineSpec(name="coarse", tau=TAU, noise_volts_rms=0.1, read_bits=3, read_noise_volts_rms=0.02, rail_volts=1.0)
    coarse = Machine(spec)
    quiet, rough = (
        m.read_autocovariance(m.program(MATRIX), pairs=2000, lag=TAU, burn_in=100 * TAU, generator=fresh())
        for m in (NOISY, coarse)
    )
    assert rough.read_clipped.dtype == torch.int64
    assert quiet.read_clipped.item() == 0
    want = torch.linalg.inv(MATRIX) @ torch.linalg.matrix_exp(-MATRIX)
    for reading in (quiet, rough):  # a converter's errors are independent from read to read: no bias at a lag
        assert (reading.covariance - want).norm() / want.norm() < 0.3


def test_work_is_one_watch() -> None:
    programmed = NOISY.program(MATRIX.expand(4, 3, 3))
    work = NOISY.read_autocovariance(programmed, pairs=10, lag=2 * TAU, burn_in=50 * TAU, generator=fresh()).work
    ((job, count),) = work.jobs.items()
    assert (count, job.drives, job.conversions_out, job.upload_bits) == (4, 1, 33, 0.0)
    assert job.settle_seconds == 50 * TAU
    assert job.read_seconds == pytest.approx(20 * TAU)


def test_offsets_and_dead_cells_are_in_what_is_read() -> None:
    spec = MachineSpec(name="offset", tau=TAU, noise_volts_rms=1e-6, offset_mismatch=0.1, dead_converters=0.5)
    machine = Machine(spec, serial=1)
    programmed = machine.program(MATRIX)
    mean = torch.linalg.solve(MATRIX, oracle(programmed).network.offset)
    alive = torch.ones(3, dtype=torch.float64).masked_fill(oracle(programmed).network.cells.dead_adc, 0.0)
    assert 0 < alive.sum() < 3
    reading = machine.read_autocovariance(programmed, pairs=5, lag=TAU, burn_in=100 * TAU, generator=fresh())
    want = torch.outer(mean * alive, mean * alive) / machine.spec.noise
    torch.testing.assert_close(reading.covariance, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())


@pytest.mark.parametrize(
    "machine,options,message",
    [
        (Machine(MachineSpec(name="quiet", tau=TAU)), {}, r"machine 'quiet' has no noise to read"),
        (NOISY, {"pairs": 0}, r"reads >= 1 and an interval > 0 s, got 0 and 1e-06"),
        (NOISY, {"lag": 0.0}, r"reads >= 1 and an interval > 0 s, got 5 and 0.0"),
    ],
)
def test_bad_requests_are_refused(machine: Machine, options: dict[str, object], message: str) -> None:
    programmed = machine.program(MATRIX)
    asked = {"pairs": 5, "lag": TAU, "burn_in": TAU, **options}
    with pytest.raises(ValueError, match=message):
        machine.read_autocovariance(programmed, **asked)
