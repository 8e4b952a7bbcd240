"""What one visit to a machine costs, by part.

A job uploads U bits, then serves d drives in series; each sends and returns t bits, settles, and is read:

    seconds = U / bandwidth + d · max(settle + read + convert, t / bandwidth)

the timing model of Thermodynamic Natural Gradient Descent (Donatella et al. 2024, arXiv 2405.13817) with the converters named:
each cell has one converter of each kind, drives are converted before the machine settles, and reads while it is read, as far
as the sample rate allows. The transfer of one drive overlaps the settling of another, so a drive pays for transfer only what
settling, reading and converting do not hide.

    joules = (U + d t) · energy per bit + conversions · energy of each + cells · power of a cell · d (settle + read)
"""

from __future__ import annotations

from dataclasses import dataclass

from heatbath.costs.bill import Bill
from heatbath.machines import MachineSpec
from heatbath.work import Job


@dataclass(frozen=True)
class _Sum:
    """Amounts times prices, of which some are not stated."""

    stated: float = 0.0
    unstated: bool = False

    def plus(self, amount: float, price: float | None) -> _Sum:
        if amount == 0:
            return self
        if price is None:
            return _Sum(self.stated, True)
        return _Sum(self.stated + amount * price, self.unstated)


def job_bill(job: Job, spec: MachineSpec) -> Bill:
    """The bill of one job on one machine; what `spec` does not state is not stated in the bill.

    Args:
        job: the visit.
        spec: the machine it visited.
    """
    second_per_bit = None if spec.bandwidth is None else 1 / spec.bandwidth
    second_per_sample = None if spec.sample_rate is None else 1 / spec.sample_rate
    upload = _Sum().plus(job.upload_bits, second_per_bit)
    settle, read = job.drives * job.settle_seconds, job.drives * job.read_seconds
    convert = _Sum().plus(job.drives * job.conversions_in / job.cells, second_per_sample)
    late = _Sum().plus(job.drives * job.conversions_out / job.cells, second_per_sample)
    convert = _Sum(convert.stated + max(late.stated - read, 0.0), convert.unstated or late.unstated)
    transfer = _Sum().plus(job.drives * (job.drive_bits + job.read_bits), second_per_bit)
    exposed = max(transfer.stated - settle - read - convert.stated, 0.0)
    seconds = {"upload": upload, "drive": _Sum(exposed, transfer.unstated), "convert": convert}
    seconds |= {"settle": _Sum(settle), "read": _Sum(read)}

    power = None if spec.cell_power is None else spec.cell_power * job.cells
    convert = _Sum().plus(job.drives * job.conversions_in, spec.drive_conversion_energy)
    convert = convert.plus(job.drives * job.conversions_out, spec.read_conversion_energy)
    joules = {
        "upload": _Sum().plus(job.upload_bits, spec.transfer_energy),
        "drive": _Sum().plus(job.drives * (job.drive_bits + job.read_bits), spec.transfer_energy),
        "convert": convert,
        "settle": _Sum().plus(settle, power),
        "read": _Sum().plus(read, power),
    }
    return Bill(
        {part: s.stated for part, s in seconds.items()},
        {part: s.stated for part, s in joules.items()},
        frozenset(part for part, s in seconds.items() if s.unstated),
        frozenset(part for part, s in joules.items() if s.unstated),
    )
