"""Prices: machines of one kind share the work, all of them use energy, kinds work side by side."""

from __future__ import annotations

import pytest

from heatbath.costs import Digital, price
from heatbath.machines import MachineSpec
from heatbath.work import Job, Work, matmul

DIGITAL = Digital("d", "an example", flops_per_second=1e9, bytes_per_second=1e12, launch_seconds=1e-9, watts=10.0)
MACHINES = {name: MachineSpec(name=name, tau=1e-6, bandwidth=1e9, cell_power=1e-3, cells=100) for name in ("a", "b")}


def job(seconds: float, machine: str = "a") -> Job:
    return Job(machine, cells=100, drives=1, settle_seconds=seconds)


def test_digital_work_costs_time_and_power():
    bill = price(Work.of(matmul(100, 100, 100), 3), digital=DIGITAL)
    assert bill.seconds_by_part == pytest.approx({"digital": 6e-3})
    assert bill.joules_by_part == pytest.approx({"digital": 6e-2})


def test_power_that_is_not_stated_is_not_stated():
    silent = Digital("s", "an example", 1e9, 1e12, 1e-9)
    assert price(Work.of(matmul(9, 9, 9)), digital=silent).unstated == ("joules of digital",)


def test_copies_divide_the_time_but_not_the_energy():
    work = Work.of(job(3e-3)) + Work.of(job(2e-3), 3)
    one = price(work, digital=DIGITAL, machines=MACHINES)
    two = price(work, digital=DIGITAL, machines=MACHINES, copies=2)
    assert one.seconds == pytest.approx(9e-3)
    assert two.seconds == pytest.approx(5e-3)  # 3 + 2 against 2 + 2
    assert one.joules == pytest.approx(0.1 * 9e-3)
    assert two.joules == pytest.approx(one.joules)


def test_with_a_machine_for_every_job_the_longest_decides():
    work = Work.of(job(3e-3)) + Work.of(job(2e-3), 10**6)
    assert price(work, digital=DIGITAL, machines=MACHINES, copies=10**9).seconds == pytest.approx(3e-3)
    halves = (Work.of(job(3e-3)) + Work.of(job(2e-3))) * 0.5
    assert price(halves, digital=DIGITAL, machines=MACHINES).seconds == pytest.approx(
        2.5e-3
    )  # one machine, one after the other
    assert price(halves, digital=DIGITAL, machines=MACHINES, copies=2).seconds == pytest.approx(1.5e-3)


def test_parts_are_those_of_the_machine_that_is_done_last():
    upload = Job("a", cells=10, upload_bits=4e6)  # 4 ms
    work = Work.of(upload) + Work.of(job(3e-3))
    bill = price(work, digital=DIGITAL, machines=MACHINES, copies=2)
    assert bill.seconds_by_part["upload"] == pytest.approx(4e-3)
    assert bill.seconds_by_part["settle"] == 0.0
    assert bill.joules == pytest.approx(0.1 * 3e-3)
    assert bill.unstated == ("joules of upload",)


def test_two_kinds_of_machines_work_side_by_side():
    work = Work.of(job(3e-3, "a"), 2) + Work.of(job(5e-3, "b"))
    bill = price(work, digital=DIGITAL, machines=MACHINES)
    assert bill.seconds == pytest.approx(6e-3)
    assert bill.joules == pytest.approx(0.1 * 11e-3)


def test_presets_are_known_by_name():
    assert price(Work.of(job(1e-3, "tngd-2024")), digital=DIGITAL).seconds == pytest.approx(1e-3)


def test_no_work_costs_nothing():
    bill = price(Work(), digital=DIGITAL)
    assert (bill.seconds, bill.joules, bill.unstated) == (0, 0, ())


def test_an_unknown_machine_too_few_cells_and_no_copies_are_refused():
    with pytest.raises(ValueError, match=r"visited machine 'c', given are a, b; pass it in machines="):
        price(Work.of(job(1.0, "c")), digital=DIGITAL, machines=MACHINES)
    with pytest.raises(ValueError, match="a job of 200 cells does not fit machine 'a' of 100"):
        price(Work.of(Job("a", cells=200)), digital=DIGITAL, machines=MACHINES)
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        price(Work(), digital=DIGITAL, copies=0)
