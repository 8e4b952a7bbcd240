"""The cheapest machine against brute force over all, and benefits that come from trials."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatbath.costs import Bill, h100
from heatbath.experiments import Experiment, Record, Target
from heatbath.experiments.models import mlp
from heatbath.experiments.studies import Budget, Design, design_page
from heatbath.experiments.studies.design import ROUTES, Candidate, Designed, Precision, Tried, fallback_share, frontier, keeps
from heatbath.experiments.studies.networks import shapes_of
from heatbath.experiments.studies.runtime import count, methods, with_time_constant
from heatbath.experiments.studies.step_bill import Hardware, step_prices
from heatbath.experiments.studies.step_work import second_order_step
from heatbath.machines import Machine, load_machine, with_bits
from heatbath.solvers import Factorwise, ThermodynamicSolve
from tests.experiments import tasks

SPEC = load_machine("tngd-2024")


def candidate(seconds: float, machines: int, bits: int, *, kept: bool = True, joules: float | None = 1.0) -> Candidate:
    tried = Tried("t", (1,), Precision("thermodynamic-solve", bits, 50.0))
    stated = {} if joules is None else {"settle": joules}
    unstated = frozenset({"settle"}) if joules is None else frozenset()
    return Candidate(tried, 1e-6, machines, 10, Bill({"settle": seconds}, stated, frozenset(), unstated), kept)


CANDIDATES = st.lists(
    st.builds(
        candidate,
        st.floats(0.1, 10),
        st.integers(1, 8),
        st.integers(2, 8),
        kept=st.booleans(),
        joules=st.sampled_from([None, 0.5, 2.0]),
    ),
    max_size=12,
)


@given(CANDIDATES, st.floats(0.1, 10), st.sampled_from([None, 1.0]), st.sampled_from([None, 2.0]))
def test_the_cheapest_is_the_cheapest_of_those_that_meet_every_limit(
    candidates: list[Candidate], seconds: float, joules: float | None, slowdown: float | None
) -> None:
    nothing = Tried("", ())
    found = Designed(nothing, nothing, [], 2.0, candidates).cheapest(Budget(seconds, joules, slowdown))
    fit = []
    for c in candidates:
        within = c.bill.seconds <= seconds and (slowdown is None or c.bill.seconds <= slowdown * 2.0)
        if joules is not None:
            within = within and not c.bill.unstated_joules and c.bill.joules <= joules
        if c.kept and within:
            fit.append(c)
    assert (found is None) == (not fit)
    assert found is None or found.couplings == min(c.couplings for c in fit)


@given(CANDIDATES)
def test_nothing_that_keeps_the_benefit_beats_the_frontier_in_both(candidates: list[Candidate]) -> None:
    best = frontier(candidates)
    for c in candidates:
        if c.kept:
            assert any(b.couplings <= c.couplings and b.bill.seconds <= c.bill.seconds for b in best)
    for b in best:
        assert not any(c.kept and c.couplings <= b.couplings and c.bill.seconds < b.bill.seconds for c in candidates)


def test_a_benefit_is_a_share_of_the_steps_saved_with_every_seed() -> None:
    slow, fast = Tried("", (30, 30)), Tried("", (10, 10))
    assert keeps(Tried("", (14, 14)), slow, fast, 0.8)
    assert not keeps(Tried("", (14, 15)), slow, fast, 0.8)
    assert not keeps(Tried("", (10, None)), slow, fast, 0.8)
    assert not keeps(Tried("", (5, 5)), fast, slow, 0.8)  # digital K-FAC saves nothing: nothing to keep


def test_a_machine_that_hands_its_work_over_keeps_nothing() -> None:
    """Three bits on digits: every matrix is indefinite, the digital side does it all, and the curve is digital K-FAC's."""
    slow, fast = Tried("", (30,)), Tried("", (10,))
    lazy = Tried("", (10,), Precision("thermodynamic-inverse", 3, 50.0), fallback=1.0)
    assert keeps(lazy, slow, fast, 0.8)
    assert not STUDY.kept(lazy, slow, fast)
    assert replace(STUDY, fallback=1.0).kept(lazy, slow, fast)


def test_the_share_handed_over_is_read_from_the_last_report() -> None:
    report = {
        "prepare.solved": 1.0,
        "prepare.redamped": 2.0,
        "prepare.fell_back": 3.0,
        "solve.fell_back": 9.0,
        "prepare.clipped": 5.0,
    }
    rows = [{"step": 0, "optimizer": {"prepare.fell_back": 1.0}}, {"step": 1, "optimizer": report}, {"step": 2}]
    assert fallback_share(Record(Path("x"), {}, rows)) == 0.5
    assert fallback_share(Record(Path("x"), {}, [{"step": 0}])) == 0.0


def easy() -> Experiment:
    return tasks.experiment(model=lambda: mlp((6, 8, 3)), target=Target("test accuracy", 0.6), name="easy")


STUDY = Design(easy, SPEC, h100(), bits=(6,), settle=(50.0,), seeds=1, steps=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("design")


@pytest.fixture(scope="module")
def found(folder: Path) -> Designed:
    return STUDY.run(folder)


@pytest.mark.slow
def test_benefits_come_from_trials_and_are_made_once(folder: Path, found: Designed) -> None:
    fresh: list[str] = []

    def watch(trial: object, record: Record, new: bool) -> None:
        fresh.extend([record.name] if new else [])

    assert STUDY.run(folder, watch=watch).precisions == found.precisions
    assert fresh == []
    lost = "kfac-thermodynamic-solve-tngd-2024-6bit-settle50-seed1"
    (folder / f"{lost}.jsonl").unlink()
    assert STUDY.run(folder, watch=watch).precisions == found.precisions
    assert fresh == [lost]
    assert {one.precision.solver for one in found.precisions if one.precision} == set(ROUTES)


@pytest.mark.slow
def test_machines_are_priced_as_if_counted_on_them(found: Designed) -> None:
    one = next(
        c for c in found.candidates if c.tau == 1e-8 and c.tried.precision and c.tried.precision.solver.endswith("solve")
    )
    spec = replace(with_time_constant(with_bits(SPEC, matrix=6, drive=6, read=6), 1e-8), settle_taus=50.0)
    step = second_order_step(shapes_of(easy()), Factorwise(ThermodynamicSolve(Machine(spec, tolerance=0))))
    bill = step_prices(step, Hardware(h100(), spec, machines=one.machines)).per_step(10)
    assert one.bill.seconds == pytest.approx(bill.seconds)
    assert one.couplings == one.machines * 9**2 * 6  # the largest factor: 8 inputs and the bias


@pytest.mark.slow
def test_the_digital_side_is_the_best_of_its_methods(folder: Path, found: Designed) -> None:
    steps = count(shapes_of(easy()), methods(SPEC), folder).steps
    times = [step_prices(steps[name], Hardware(h100(), SPEC)).per_step(10).seconds for name in ("cholesky", "newton-schulz")]
    assert found.digital_seconds <= min(times)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (Budget(slowdown=1e9), "The cheapest that keeps the benefit"),
        (Budget(seconds=1e-12), "No machine that was priced"),
        (Budget(joules=1e9), "its source states no energies"),
    ],
)
def test_the_page_says_which_machine_or_why_none(found: Designed, tmp_path: Path, budget: Budget, says: str) -> None:
    kept = replace(found, candidates=[replace(c, kept=True) for c in found.candidates])
    page = design_page(STUDY, kept, budget).write(tmp_path)
    assert says in page.read_text()
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["cheapest"] is None) == (kept.cheapest(budget) is None)
    lost = replace(found, candidates=[replace(c, kept=False) for c in found.candidates])
    assert "No precision that was tried" in design_page(STUDY, lost, budget).write(tmp_path / "lost").read_text()


def test_wrong_settings_are_refused() -> None:
    for budget in ({}, {"seconds": 0.0}, {"slowdown": -1.0}):
        with pytest.raises(ValueError, match="a budget needs a positive limit: give --seconds, --joules or --slowdown"):
            Budget(**budget)
    with pytest.raises(ValueError, match="at least one number of bits, one settling time and one seed"):
        replace(STUDY, bits=())
    with pytest.raises(ValueError, match=r"lies in \(0, 1\], got 0"):
        replace(STUDY, keep=0.0)
    with pytest.raises(ValueError, match=r"may fall back lies in \[0, 1\], got 2"):
        replace(STUDY, fallback=2.0)
