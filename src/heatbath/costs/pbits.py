"""What sampling on a machine of probabilistic bits costs.

    joules = bits written · write + updates · update + bits read · read

Writing dominates on published figures: one bit written costs as much as 21,700 updates, one read as much as 240.
"""

from __future__ import annotations

from heatbath.costs.bill import Bill
from heatbath.machines import PbitSpec
from heatbath.work import Job


def pbit_bill(job: Job, spec: PbitSpec) -> Bill:
    """The bill of one job; what `spec` does not state is not stated in the bill.

    Args:
        job: the visit.
        spec: the machine it visited.
    """
    amounts = {
        "upload": (float(job.cells) if job.upload_bits else 0.0, spec.write_energy),
        "settle": (job.drives * job.updates, spec.update_energy),
        "read": (float(job.drives * job.conversions_out), spec.read_energy),
    }
    used = {part for part, (amount, _) in amounts.items() if amount}
    timed = {"settle"} if spec.update_seconds is not None else set()
    return Bill(
        {"settle": job.drives * job.settle_seconds} if used & timed else {},
        {part: amount * price for part, (amount, price) in amounts.items() if amount and price is not None},
        frozenset(used - timed),
        frozenset(part for part in used if amounts[part][1] is None),
    )
