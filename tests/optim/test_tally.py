from __future__ import annotations

import torch

from heatbath.optim.tally import Pass, Tally
from heatbath.solvers import Outcome, Solution
from heatbath.work import Job, Work, cholesky
from tests.laws import saved_and_loaded

JOB = Work.of(Job("m", 4, drives=2), 3)


def codes(*outcomes: Outcome) -> torch.Tensor:
    return torch.tensor([o.code for o in outcomes], dtype=torch.int8)


def filled() -> Tally:
    tally = Tally()
    tally.add_prepared(Work.of(cholesky(3)), codes(Outcome.SOLVED, Outcome.REDAMPED))
    tally.add_prepared(Work.of(cholesky(3)), codes(Outcome.SOLVED, Outcome.FELL_BACK))
    tally.refreshes += 1  # of two stacks
    notes = {"left.tier": "exact law", "left.read_clipped": torch.tensor([1, 2])}
    for _ in range(2):
        tally.add_solve(Solution(torch.ones(2), JOB, codes(Outcome.SOLVED, Outcome.NONFINITE), notes=notes))
    for scale, finite in ((1.0, True), (0.5, True), (float("nan"), False)):
        tally.add_step(torch.tensor(scale), torch.tensor(finite))
    return tally


def test_a_report_by_hand():
    report = filled().report()
    assert report == {
        "refreshes": 1,
        "prepare.solved": 2.0,
        "prepare.redamped": 1.0,
        "prepare.fell_back": 1.0,
        "solve.solved": 2.0,
        "solve.nonfinite": 2.0,
        "skipped_steps": 1.0,
        "mean_trust": 2.5 / 3,
        "clipped_share": 1 / 3,
        "left.read_clipped": 6.0,
        "left.tier": "exact law",
    }


def test_work_adds_up():
    assert filled().work == Work.of(cholesky(3), 2) + JOB * 2


def test_digital_solves_are_not_counted_one_by_one():
    tally = Tally()
    tally.add_solve(Solution(torch.ones(1), Work.of(cholesky(3)), codes(Outcome.SOLVED)))
    assert tally.report() == {"refreshes": 0}


def test_nothing_done_is_reported_as_nothing():
    assert Tally().report() == {"refreshes": 0}
    assert Tally().work == Work()


def test_passes_are_reported_by_kind_and_those_that_were_not_made_are_not():
    tally = Tally()
    for _ in range(2):
        tally.add_passes({Pass.PULL: 3, Pass.PUSH: 0})
    assert tally.passes == {Pass.PULL: 6}
    assert tally.report() == {"refreshes": 0, "passes.pull": 6.0}


def test_a_checkpoint_goes_on_counting():
    tally, other = filled(), Tally()
    tally.add_passes({Pass.EVALUATE: 2})
    other.load_state_dict(saved_and_loaded(tally.state_dict()))
    for each in (tally, other):
        each.add_prepared(Work(), codes(Outcome.SOLVED))
        each.add_step(torch.tensor(1.0), torch.tensor(True))
    assert other.work == tally.work
    assert other.passes == {Pass.EVALUATE: 2}
    report = other.report()
    assert {k: v for k, v in tally.report().items() if k != "left.tier"} == report  # what is said last is not kept
