"""Prices of steps against sums by hand, crossovers against brute force, counts that are made once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from heatbath.costs import Digital, Hardware, StepWork, by_fluctuations, cell_seconds, step_prices
from heatbath.experiments.studies import Runtime, runtime_page
from heatbath.experiments.studies.crossover import best_digital, crossover, layer, seconds_of
from heatbath.experiments.studies.networks import Network
from heatbath.experiments.studies.runtime import Counted, count, methods, with_time_constant
from heatbath.experiments.studies.runtime_page import _finding, _plain, _step_table, break_even_power
from heatbath.experiments.studies.step_work import BLOCKS, DEFAULT, FULL, Form, second_order_step
from heatbath.machines import Machine, MachineSpec, load_machine, presets
from heatbath.optim import Policy
from heatbath.solvers import Factorwise, ThermodynamicInverse
from heatbath.work import Job, Work, matmul
from tests.experiments import hand

SLOW = Digital("slow", "an example", flops_per_second=1e9, bytes_per_second=1e15, launch_seconds=1e-12, watts=2.0)
SPEC = MachineSpec(name="m", tau=1e-3, bandwidth=1e6)
MULTIPLY = Work.of(matmul(10, 10, 10))  # 2 µs on SLOW


def job(drives: int = 0, upload: float = 0.0) -> Job:
    settle = 5e-3 if drives else 0.0
    return Job("m", 8, upload_bits=upload, drives=drives, settle_seconds=settle)


STEP = StepWork(
    passes=MULTIPLY * 5,
    apply=MULTIPLY,
    capture=MULTIPLY * 2,
    refresh=MULTIPLY * 3,
    programming=Work.of(job(upload=1000.0), 2),
    inversion=Work.of(job(drives=8)),
    first=Work.of(job(drives=3), 2),
    second=Work.of(job(drives=4), 2),
)


def test_a_step_costs_the_sum_of_its_phases_and_a_share_of_its_refresh() -> None:
    prices = step_prices(STEP, Hardware(SLOW, SPEC))
    assert prices.always.seconds == pytest.approx(12e-6 + 3 * 5e-3 + 4 * 5e-3)
    assert prices.renewed.seconds == pytest.approx(10e-6 + 1e-3 + 8 * 5e-3)
    assert prices.per_step(10).seconds == pytest.approx(35.012e-3 + 41.010e-3 / 10)
    assert prices.per_step(10).joules == pytest.approx(2.0 * (12e-6 + 1e-6))
    assert prices.per_step(10).unstated_joules == {"upload", "settle"}
    parts = prices.per_step(1).seconds_by_part
    assert (parts["upload"], parts["settle"]) == pytest.approx((1e-3, 75e-3))


def test_one_machine_serves_the_jobs_of_a_phase_in_turn() -> None:
    prices = step_prices(STEP, Hardware(SLOW, SPEC, machines=1), passes=False)
    assert prices.always.seconds == pytest.approx(2e-6 + 2 * 3 * 5e-3 + 2 * 4 * 5e-3 + 4 * 1e-3)
    assert prices.renewed.seconds == pytest.approx(6e-6 + 8 * 5e-3)


def test_fewer_machines_than_matrices_are_sent_them_at_every_step_and_the_bill_says_so() -> None:
    """Four matrices of 1,000 bits over 1 Mbit/s are solved with in a step: 1 ms each, refreshed or not."""
    four, three, one = (step_prices(STEP, Hardware(SLOW, SPEC, machines=k)) for k in (4, 3, 1))
    assert (four.always.seconds_by_part["upload"], four.renewed.seconds_by_part["upload"]) == pytest.approx((0.0, 1e-3))
    assert one.always.seconds_by_part["upload"] == pytest.approx(4e-3)
    assert three.always.seconds_by_part["upload"] == pytest.approx(2e-3)  # two at a time on each side, one side after the other
    assert one.renewed.seconds_by_part.get("upload", 0.0) == three.renewed.seconds_by_part.get("upload", 0.0) == 0.0
    for prices in (three, one):
        assert prices.always.seconds - prices.always.seconds_by_part["upload"] == pytest.approx(
            step_prices(
                replace(STEP, programming=Work()), Hardware(SLOW, SPEC, machines=1 if prices is one else 3)
            ).always.seconds
        )


def test_machines_that_share_a_matrix_divide_the_drives() -> None:
    prices = step_prices(STEP, Hardware(SLOW, SPEC, replicas=4), passes=False)
    assert prices.always.seconds == pytest.approx(2e-6 + 1 * 5e-3 + 1 * 5e-3)
    assert prices.renewed.seconds == pytest.approx(6e-6 + 1e-3 + 2 * 5e-3)


def test_lower_precision_is_for_the_refresh_alone() -> None:
    fast = Digital("fast", "an example", 1e10, 1e15, 1e-12)
    prices = step_prices(STEP, Hardware(SLOW, SPEC, half=fast), half=True)
    assert prices.always.seconds_by_part["digital"] == pytest.approx(12e-6)
    assert prices.renewed.seconds_by_part["digital"] == pytest.approx(4e-6 + 0.6e-6)


def test_cells_at_work_are_summed_over_machines_and_their_energy_is_that_of_the_bill() -> None:
    each = 8 * 5e-3
    assert cell_seconds(STEP, 10) == pytest.approx(each * (2 * 3 + 2 * 4) + each * 8 / 10)
    powered = replace(SPEC, cell_power=7.0)
    bill = step_prices(STEP, Hardware(SLOW, powered)).per_step(10)
    analog = bill.joules - bill.joules_by_part["digital"]
    assert 7.0 * cell_seconds(STEP, 10) == pytest.approx(analog)


@pytest.mark.parametrize("name", ["solve", "crossbar"])  # reading an inverse takes a transform, dear on eight cells
def test_a_cell_that_draws_the_break_even_power_costs_what_the_digital_side_costs(counted: list[Counted], name: str) -> None:
    steps = counted[0].steps
    watts = break_even_power(STUDY, counted[0], next(m for m in STUDY.methods if m.name == name))
    digital = [step_prices(steps[n], STUDY.hardware).per_step(10).joules for n in ("cholesky", "eigen", "newton-schulz")]
    assert watts is not None
    powered = Hardware(SLOW, replace(STUDY.spec, cell_power=watts))
    assert step_prices(steps[name], powered).per_step(10).joules == pytest.approx(min(digital))


def test_no_power_is_left_where_the_digital_part_alone_costs_more(counted: list[Counted]) -> None:
    dear = replace(counted[0].steps["inverse"], apply=MULTIPLY * 1e6)
    one = Counted(counted[0].network, {**counted[0].steps, "inverse": dear})
    assert break_even_power(STUDY, one, next(m for m in STUDY.methods if m.name == "inverse")) is None


def test_inverting_by_fluctuations_asks_for_what_the_machine_counts() -> None:
    spec = presets()["tngd-2024"]
    step = StepWork(Work(), Work(), inversion=Work.of(Job("tngd-2024", 4, drives=4, settle_seconds=1e-6), 3))
    (watched, machines), *none = by_fluctuations(step, spec, error=0.5).inversion.jobs.items()
    assert (machines, none) == (3, [])
    machine = Machine(spec)
    programmed = machine.program(torch.eye(4, dtype=torch.float64))
    reading = machine.read_covariance(programmed, reads=20, interval=1e-6, burn_in=50e-6)
    (real,) = reading.work.jobs
    assert vars(watched) == pytest.approx(vars(real))
    with pytest.raises(ValueError, match=r"error must be positive, got 0"):
        by_fluctuations(step, spec, error=0.0)


@given(st.floats(0.5, 2.5), st.floats(2.6, 4.0), st.floats(1.0, 4.0))
def test_a_crossover_is_where_brute_force_finds_it(slow: float, steep: float, decades: float) -> None:
    sizes = [10, 30, 100, 300, 1000, 3000, 10000]

    def incumbent(n: float) -> float:
        return float(n**steep)

    def challenger(n: float) -> float:
        return float(10 ** (decades * (steep - slow)) * n**slow)

    found = crossover(sizes, [challenger(n) for n in sizes], [incumbent(n) for n in sizes])
    first = next((n for n in range(10, 10001) if challenger(n) <= incumbent(n)), None)
    if first is None:
        assert found is None
    else:
        assert found is not None
        assert first - 1 <= found + 1e-6 and found - 1e-6 <= first


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=8))
def test_a_crossover_leaves_no_size_behind_it_where_the_challenger_is_slower(curves: list[tuple[float, float]]) -> None:
    sizes = [2**k for k in range(len(curves))]
    challenger, incumbent = zip(*curves, strict=True)
    found = crossover(sizes, challenger, incumbent)
    if found is None:
        assert challenger[-1] > incumbent[-1]
        return
    at = [c <= i * (1 + 1e-12) for c, i in curves]
    assert all(ok for n, ok in zip(sizes, at, strict=True) if n >= found)
    before = [ok for n, ok in zip(sizes, at, strict=True) if n < found * (1 - 1e-12)]
    assert not before or not before[-1]


def test_curves_over_other_sizes_are_refused() -> None:
    bad: list[tuple[Sequence[int], list[float], list[float]]] = [([], [], []), ([1, 2], [1.0], [1.0, 2.0])]
    for sizes, challenger, incumbent in bad:
        with pytest.raises(ValueError, match="curves over the same sizes"):
            crossover(sizes, challenger, incumbent)


def test_a_square_layer_has_two_factors_and_n_drives_a_side(tmp_path: Path) -> None:
    wanted = [method for method in methods(presets()["tngd-2024"]) if method.name in ("solve", "cholesky")]
    counted = count(layer(16), wanted, tmp_path)
    step = counted.steps["solve"]
    assert [(job.cells, n) for job, n in step.programming.jobs.items()] == [(16, 2)]
    assert [(job.cells, job.drives, n) for job, n in (step.first + step.second).jobs.items()] == [(16, 16, 2)]
    (method,) = (m for m in wanted if m.name == "solve")
    spec = load_machine("tngd-2024")
    upload, drives = 16 * 16 * 16 / 50e9, 16 * 50e-6
    seconds = seconds_of(step, method, Hardware(SLOW, spec), 10)
    digital = SLOW.seconds(step.apply) + SLOW.seconds(step.refresh) / 10
    assert seconds == pytest.approx(2 * drives + upload / 10 + digital)
    found, best = best_digital(counted, wanted, Hardware(SLOW, spec), 10)
    assert best.name == "cholesky"
    assert found == pytest.approx(
        SLOW.seconds(counted.steps["cholesky"].apply) + SLOW.seconds(counted.steps["cholesky"].refresh) / 10
    )


def tiny() -> Network:
    return Network(
        "tiny",
        "a tiny network",
        "made here",
        lambda: nn.Sequential(nn.Linear(4, 6)),
        lambda: (torch.rand(8, 4), torch.zeros(8, dtype=torch.long)),
        F.cross_entropy,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("counts")


STUDY = Runtime([tiny()], load_machine("tngd-2024"), SLOW)


@pytest.fixture(scope="module")
def counted(folder: Path) -> list[Counted]:
    return STUDY.run(folder)


def test_counts_are_made_once_and_torn_or_foreign_files_anew(folder: Path, counted: list[Counted]) -> None:
    fresh: list[str] = []

    def watch(name: str, new: bool) -> None:
        fresh.extend([name] if new else [])

    assert STUDY.run(folder, watch=watch)[0].steps == counted[0].steps
    assert fresh == []
    whole = (folder / "tiny-sgd.json").read_text()
    (folder / "tiny-sgd.json").write_text(whole[:50])
    (folder / "tiny-adam.json").write_text(whole.replace("a tiny network", "another"))
    (folder / "tiny-cholesky.json").unlink()
    assert STUDY.run(folder, watch=watch)[0].steps == counted[0].steps
    assert fresh == ["tiny-sgd", "tiny-adam", "tiny-cholesky"]


@pytest.mark.slow
def test_the_page_says_what_the_prices_say(counted: list[Counted], tmp_path: Path) -> None:
    layers = {size: Counted(layer(size), counted[0].steps) for size in (64, 128)}
    page = runtime_page(STUDY, counted, layers).write(tmp_path)
    text, result = page.read_text(), json.loads((tmp_path / "result.json").read_text())
    prices = step_prices(counted[0].steps["solve"], STUDY.hardware)
    for every in (1, 10, 100):
        assert result["networks"]["tiny"]["solve"][str(every)]["seconds"]["settle"] == pytest.approx(
            prices.per_step(every).seconds_by_part["settle"]
        )
    assert "≥ " in text and "not stated" in text
    assert "its forward pass is code" not in text and "Linear first and last" not in text  # the tiny one can be trained so
    assert {p.stem for p in tmp_path.glob("*.svg")} == {p.stem for p in tmp_path.glob("*.csv")} == {
        "step-time", "layer-time", "crossover", "sweeps",
    }  # fmt: skip


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"intervals between refreshes are 1 step or more, got \(0,\)"):
        Runtime([tiny()], SPEC, SLOW, intervals=(0,))
    with pytest.raises(ValueError, match="a fleet needs at least one machine, got machines=0"):
        Hardware(SLOW, SPEC, machines=0)
    with pytest.raises(ValueError, match="a time constant is positive, got 0"):
        with_time_constant(SPEC, 0.0)


def test_another_time_constant_keeps_the_noise() -> None:
    spec = presets()["tngd-2024"]
    fast = with_time_constant(spec, 1e-8)
    assert (fast.time_constant, fast.noise) == pytest.approx((1e-8, spec.noise))
    assert with_time_constant(SPEC, 2.0).tau == 2.0
    assert math.isclose(spec.time_constant, 1e-6)


def hand_counted() -> tuple[Runtime, Counted]:
    """A network by SGD, Adam, Cholesky in two forms, and both routes, of work that is priced on paper."""
    digital = replace(STEP, programming=Work(), inversion=Work(), first=Work(), second=Work())
    plain = StepWork(passes=MULTIPLY * 5, apply=MULTIPLY)
    steps = {
        "sgd": plain,
        "adam": plain,
        "cholesky": digital,
        "newton-schulz": replace(digital, refresh=MULTIPLY * 13),
        "cholesky-blocks": replace(digital, refresh=MULTIPLY),
        "cholesky-default": digital,
        "inverse": replace(STEP, first=Work(), second=Work()),
        "inverse-blocks": replace(STEP, first=Work(), second=Work(), inversion=Work.of(job(drives=2))),
        "solve": replace(STEP, inversion=Work()),
    }
    return Runtime([], SPEC, SLOW), Counted(tiny(), steps)


def test_every_column_of_the_table_of_a_step_is_what_prices_by_hand_say() -> None:
    """A product takes 2 µs. Every step 6 products; a refresh 2 for the factors and 3 more, 1 ms of upload, 40 ms of settling.

    The method's solves take 3 + 4 drives of 5 ms in every step. 2 W while digital work is done.
    """
    study, one = hand_counted()
    table = _step_table(study, one)
    found = hand.cells((table.head, table.rows))
    nothing = dict.fromkeys(("upload", "drive", "convert", "settle", "read"), "–")

    def line(every: tuple[str, str, str], digital: str, energy: str, **parts: str) -> dict[str, str]:
        columns = dict(zip(("every 1", "every 10", "every 100"), every, strict=True))
        return {**columns, "at 10: digital": digital, **nothing, **parts, "energy": energy}

    assert found == {
        "SGD with momentum": line(("12 µs",) * 3, "12 µs", "24 µJ"),
        "Adam": line(("12 µs",) * 3, "12 µs", "24 µJ"),
        "K-FAC, Cholesky": line(("22 µs", "13 µs", "12.1 µs"), "13 µs", "26 µJ"),
        "K-FAC, 4 warm Newton–Schulz steps": line(("42 µs", "15 µs", "12.3 µs"), "15 µs", "30 µJ"),
        "K-FAC, Cholesky, blocks of 1,024": line(("18 µs", "12.6 µs", "12.1 µs"), "12.6 µs", "25.2 µJ"),
        "thermodynamic inverse": line(("41 ms", "4.11 ms", "422 µs"), "13 µs", "≥ 26 µJ", upload="100 µs", settle="4 ms"),
        "thermodynamic inverse, blocks of 1,024": line(
            ("11 ms", "1.11 ms", "122 µs"), "13 µs", "≥ 26 µJ", upload="100 µs", settle="1 ms"
        ),
        "thermodynamic solve": line(("36 ms", "35.1 ms", "35 ms"), "13 µs", "≥ 26 µJ", upload="100 µs", settle="35 ms"),
    }
    assert _plain(study, one)["cholesky"]["10"]["seconds"]["digital"] == pytest.approx(13e-6)


def test_the_sentence_of_a_network_compares_like_with_like_and_then_the_fastest_of_all() -> None:
    assert _finding(*hand_counted()) == (
        "- **a tiny network**, refreshed every 10 steps: with factors in full the best digital K-FAC (Cholesky) takes "
        "13 µs, 1.08 times Adam's 12 µs; the best of the machines (thermodynamic inverse) 4.11 ms, 316 times as long; "
        "with blocks of 1,024 the best digital K-FAC (Cholesky) takes 12.6 µs, 1.05 times Adam's 12 µs; the best of the "
        "machines (thermodynamic inverse) 1.11 ms, 88.3 times as long; the library's default changes no factor here; "
        "the fastest with machines over the fastest digital one, whatever the form: 88.3. Factors in full take 2 "
        "machines of up to 8 cells."
    )


def test_the_power_table_is_what_prices_by_hand_say() -> None:
    """The digital rival draws 30 µJ a step in 2 W; the solve's digital part 26 µJ, and its cells are at work 2·8·35 ms."""
    study, one = hand_counted()
    dear = Counted(one.network, {k: v for k, v in one.steps.items() if k != "cholesky"})
    watts = break_even_power(study, dear, next(m for m in study.methods if m.name == "solve"))
    assert watts == pytest.approx((30e-6 - 26e-6) / (2 * 8 * 35e-3))


def test_a_form_of_factors_changes_the_step_it_is_counted_for() -> None:
    """A layer of 5 inputs and a bias cut into blocks of 2: matrices of 2; in full, of 6 and 3."""
    network = replace(tiny(), model=lambda: nn.Linear(5, 3), batch=lambda: (torch.rand(8, 5), torch.zeros(8, dtype=torch.long)))
    machine = Machine(load_machine("tngd-2024"), tolerance=0)
    full, cut = (
        second_order_step(network, Factorwise(ThermodynamicInverse(machine)), form=form)
        for form in (FULL, Form("blocks of 2", 2))
    )
    assert sorted(job.cells for job, n in full.programming.jobs.items() for _ in range(int(n))) == [3, 6]
    assert max(job.cells for job in cut.programming.jobs) == 2
    assert {m.form for m in STUDY.methods} == {FULL, BLOCKS, DEFAULT}
    assert (DEFAULT.max_dim, DEFAULT.rank) == (Policy().max_dim, Policy().rank)
