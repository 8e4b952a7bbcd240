"""Jobs are billed as the published timing model says, part by part."""

from __future__ import annotations

import pytest

from heatbath.costs import job_bill
from heatbath.machines import MachineSpec, load_machine
from heatbath.work import Job

FULL = MachineSpec(
    name="full",
    tau=1e-6,
    bandwidth=1e9,
    sample_rate=1e6,
    cell_power=1e-3,
    drive_conversion_energy=2e-12,
    read_conversion_energy=3e-12,
    transfer_energy=5e-12,
)
JOB = Job("full", 100, 8e4, 10, 800, 800, 50e-6, 0.0, 100, 100)


def test_tngd_uploads_in_0_76_ms_and_settles_1536_drives_in_77_ms():
    n, bits = 1536, 16
    job = Job("tngd-2024", n, n * n * bits, n, n * bits, n * bits, 50e-6, 0.0)
    bill = job_bill(job, load_machine("tngd-2024"))
    assert bill.seconds_by_part["upload"] == pytest.approx(0.755e-3, rel=1e-3)
    assert bill.seconds_by_part["settle"] == pytest.approx(76.8e-3)
    assert bill.seconds_by_part["drive"] == 0.0  # 0.98 µs of transfer hide behind 50 µs of settling
    assert bill.unstated_joules == {"upload", "drive", "settle"}
    assert bill.joules == 0.0


def test_parts_of_a_fully_stated_machine_worked_by_hand():
    bill = job_bill(JOB, FULL)
    assert bill.unstated == ()
    # 8e4 bit at 1 Gbit/s; one conversion in and one out per cell and drive at 1 MHz, with no reading time to hide the second
    assert bill.seconds_by_part == pytest.approx(
        {"upload": 80e-6, "drive": 0.0, "convert": 20e-6, "settle": 500e-6, "read": 0.0}
    )
    assert bill.joules_by_part == pytest.approx(
        {"upload": 4e-7, "drive": 16_000 * 5e-12, "convert": 1000 * 5e-12, "settle": 100 * 1e-3 * 500e-6, "read": 0.0}
    )


def test_a_slow_link_sets_the_pace_of_the_drives():
    job = Job("full", 100, 0.0, 7, 60_000, 40_000, 30e-6, 20e-6)  # transfer 100 µs against 50 µs
    bill = job_bill(job, FULL)
    assert bill.seconds == pytest.approx(7 * max(30e-6 + 20e-6, 100_000 / 1e9))
    assert bill.seconds_by_part["drive"] == pytest.approx(7 * 50e-6)


def test_reading_hides_its_own_conversions():
    hidden = job_bill(Job("full", 10, drives=3, read_seconds=40e-6, conversions_out=10 * 40), FULL)
    assert hidden.seconds_by_part["convert"] == pytest.approx(0.0, abs=1e-15)
    late = job_bill(Job("full", 10, drives=3, read_seconds=40e-6, conversions_out=10 * 50), FULL)
    assert late.seconds_by_part["convert"] == pytest.approx(3 * 10e-6)


def test_what_a_machine_does_not_state_is_not_stated():
    bare = MachineSpec(name="bare", tau=1e-6)
    bill = job_bill(JOB, bare)
    assert bill.unstated_seconds == {"upload", "drive", "convert"}
    assert bill.unstated_joules == {"upload", "drive", "convert", "settle"}
    assert bill.seconds == pytest.approx(500e-6)
    assert job_bill(Job("bare", 100, drives=1, settle_seconds=1e-6), bare).unstated_seconds == frozenset()  # nothing was sent
