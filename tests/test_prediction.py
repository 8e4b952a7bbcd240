"""A step predicted on shapes: counted by hand, equal to what real steps count, and priced by hand."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import heatbath as hb
from heatbath.costs import Digital, StepBill
from heatbath.costs.count import WorkCounter, muon_work
from heatbath.optim import LevenbergMarquardt
from heatbath.work import Work, update

SPEC = hb.load_machine("tngd-2024")
MACHINE = hb.Machine(SPEC)
SLOW = Digital("slow", "by hand", flops_per_second=1e9, bytes_per_second=1e15, launch_seconds=1e-12, watts=10.0)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 4))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 4)
    )


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.block(self.embed(tokens)).mean(1))
        return logits


LABELS = torch.arange(6) % 4
TASKS: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, torch.Tensor]]] = {
    "mlp": (mlp, (torch.rand(6, 10), LABELS)),
    "cnn": (cnn, (torch.rand(6, 2, 8, 8), LABELS)),
    "transformer": (Transformer, (torch.arange(30).reshape(6, 5) % 11, LABELS)),
}


def of_the_optimizer(bill: StepBill) -> Work:
    """All work of a period but that of the passes."""
    return sum((work * bill.period for name, work in bill.work.items() if name != "passes"), Work())


def products(work: Work) -> float:
    return sum(kernel.flops * count for kernel, count in work.kernels.items() if kernel.name == "matmul")


def test_passes_of_two_layers_have_the_operations_of_their_products() -> None:
    batch, into, hidden, out = 32, 10, 16, 4
    data = torch.rand(batch, into), torch.zeros(batch, dtype=torch.long)
    bill = hb.predict(mlp(), F.cross_entropy, data, optimizer=torch.optim.AdamW)
    first, second = 2 * batch * into * hidden, 2 * batch * hidden * out
    assert products(bill.work["passes"]) == 2 * first + 3 * second  # no gradient of the inputs
    numbers = into * hidden + hidden + hidden * out + out
    assert bill.work["solve"].flops == 16 * numbers


@pytest.mark.parametrize(
    "task, factors, refresh",
    [("mlp", 1, 1), ("mlp", 2, 5), ("cnn", 3, 3), ("cnn", 2, 4), pytest.param("transformer", 2, 4, marks=pytest.mark.slow)],
)
def test_a_predicted_period_is_what_real_steps_count(task: str, factors: int, refresh: int) -> None:
    policy = hb.Policy(factor_every=factors, refresh_every=refresh, patience=0)
    assert_counted(task, lambda model: hb.KFAC(model, policy=policy), period=factors * -(-refresh // factors))


@pytest.mark.parametrize(
    "options",
    [
        {"solver": hb.ThermodynamicSolve(MACHINE)},
        {"solver": hb.ThermodynamicInverse(MACHINE)},
        {"solver": hb.NewtonSchulz(warm_steps=3)},
        {"solver": hb.Eigen(), "corrected": True},
        {"stagger": True},
        {"max_dim": 8, "rank": None},
        {"trust": hb.KLClip()},
    ],
    ids=lambda options: "-".join(options) + "-" + type(options.get("solver")).__name__,
)
def test_every_solver_and_schedule_is_counted_as_it_runs(options: dict[str, Any]) -> None:
    rest = {name: value for name, value in options.items() if name != "solver"}
    solver, policy = options.get("solver"), hb.Policy(factor_every=2, refresh_every=4, patience=0, **rest)
    assert_counted("mlp", lambda model: hb.KFAC(model, damping=1.0, solver=solver, policy=policy), period=4)


def assert_counted(task: str, make: Callable[[nn.Module], torch.optim.Optimizer], *, period: int) -> None:
    build, (x, y) = TASKS[task]
    torch.manual_seed(0)
    model = build()
    bill = hb.predict(model, F.cross_entropy, (x, y), optimizer=make)
    assert bill.period == period
    optimizer: Any = make(model)
    for step in range(3 * period):
        if step == 2 * period:
            before = optimizer.work
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    counted, run = of_the_optimizer(bill), optimizer.work - before
    assert dict(counted.kernels) == pytest.approx(dict(run.kernels))
    assert dict(counted.jobs) == pytest.approx(dict(run.jobs))


def test_passes_of_the_quadratic_policy_are_counted_as_it_makes_them() -> None:
    """Each step: one linearization and two directions; every other step: the loss twice; on captures: a sample."""
    fisher = hb.SampledFisher(hb.Categorical())
    policy = hb.Policy(
        factor_every=4,
        refresh_every=4,
        quadratic=hb.QuadraticModel(hb.Categorical()),
        fisher=fisher,
        adapt=LevenbergMarquardt(every=2),
    )
    build, batch = TASKS["mlp"]
    plain = hb.predict(build(), F.cross_entropy, batch, optimizer=torch.optim.SGD)
    bill = hb.predict(build(), F.cross_entropy, batch, optimizer=lambda model: hb.KFAC(model, policy=policy))
    first, second = 2 * 6 * 10 * 16, 2 * 6 * 16 * 4
    pull, push = second, first + 2 * second
    linearize, evaluate = pull + first + second, first + second
    expected = products(plain.work["passes"]) + linearize + 2 * push + 2 * evaluate / 2 + pull / 4
    assert products(bill.work["passes"]) == pytest.approx(expected)


@pytest.mark.parametrize("task", TASKS)
def test_twice_the_batch_is_twice_the_passes(task: str) -> None:
    build, batch = TASKS[task]
    model = build()
    once, twice = (
        hb.predict(model, F.cross_entropy, tuple(torch.cat([t] * n) for t in batch), optimizer=hb.KFAC) for n in (1, 2)
    )
    assert products(twice.work["passes"]) == 2 * products(once.work["passes"])
    assert 1.9 < products(twice.work["capture"]) / products(once.work["capture"]) <= 2
    assert twice.work["refresh"] == once.work["refresh"]


def test_a_machine_bill_is_the_price_of_the_work_done_by_hand() -> None:
    """Factors of 11, 16, 17 and 4, one drive takes 50 τ, each side waits for its longest machine; four steps a refresh."""
    policy = hb.Policy(factor_every=4, refresh_every=4)
    build, batch = TASKS["mlp"]
    bills = {
        name: hb.predict(
            build(), F.cross_entropy, batch, hardware=SLOW, optimizer=lambda m, s=solver: hb.KFAC(m, solver=s, policy=policy)
        )
        for name, solver in (("solve", hb.ThermodynamicSolve(MACHINE)), ("inverse", hb.ThermodynamicInverse(MACHINE)))
    }
    drive, upload = 50 * 1e-6, 17**2 * 16 / 50e9
    solve, inverse = bills["solve"], bills["inverse"]
    assert machine_seconds(solve.phases["solve"]) == pytest.approx((16 + 17) * drive)  # 16 drives of 11 cells, 17 of 4
    assert machine_seconds(inverse.phases["refresh"]) == pytest.approx(17 * drive / 4)
    for bill in bills.values():
        assert bill.phases["refresh"].seconds_by_part["upload"] == pytest.approx(upload / 4)
        assert bill.seconds == pytest.approx(sum(phase.seconds for phase in bill.phases.values()))
        for name in ("passes", "capture"):
            assert bill.phases[name].seconds == pytest.approx(bill.work[name].flops / 1e9)
            assert bill.phases[name].joules == pytest.approx(10 * bill.phases[name].seconds)
        assert "seconds of convert" in bill.unstated and "joules of settle" in bill.unstated
        assert "at least" in str(bill)


def machine_seconds(bill: hb.Bill) -> float:
    return sum(seconds for part, seconds in bill.seconds_by_part.items() if part not in ("digital", "upload"))


@pytest.mark.parametrize("speed, whole", [(1e6, True), (1e9, False)])
def test_a_refresh_is_hidden_as_far_as_the_next_passes_last(speed: float, whole: bool) -> None:
    digital = Digital("any", "by hand", flops_per_second=speed, bytes_per_second=1e15, launch_seconds=1e-12)
    build, batch = TASKS["mlp"]
    solver = hb.ThermodynamicInverse(MACHINE)
    bill = hb.predict(build(), F.cross_entropy, batch, hardware=digital, optimizer=lambda m: hb.KFAC(m, solver=solver))
    refresh = bill.phases["refresh"].seconds_by_part
    machines = sum(seconds for part, seconds in refresh.items() if part != "digital")
    passes = bill.phases["passes"].seconds / bill.period
    assert (passes > machines) is whole
    assert bill.seconds - bill.hidden.seconds == pytest.approx(min(machines, passes))
    assert bill.hidden.joules_by_part == bill.joules_by_part


def test_fewer_machines_than_matrices_are_sent_them_at_every_step() -> None:
    build, batch = TASKS["mlp"]
    make = partial(hb.KFAC, solver=hb.ThermodynamicSolve(MACHINE))
    many, one = (hb.predict(build(), F.cross_entropy, batch, optimizer=make, machines=n) for n in (None, 1))
    drive, bits = 50e-6, (11**2 + 17**2 + 16**2 + 4**2) * 16
    assert one.phases["solve"].seconds_by_part["upload"] == pytest.approx(bits / 50e9)
    assert machine_seconds(one.phases["solve"]) == pytest.approx((16 + 4 + 11 + 17) * drive)
    assert many.phases["solve"].seconds_by_part["upload"] == 0


def test_machines_on_one_link_wait_for_all_bits() -> None:
    """16 bits for each entry of a matrix at a refresh, and for each number driven and read at a step."""
    build, batch = TASKS["mlp"]
    make = partial(hb.KFAC, solver=hb.ThermodynamicSolve(MACHINE), policy=hb.Policy(factor_every=2, refresh_every=2))
    slow, fast = (hb.predict(build(), F.cross_entropy, batch, optimizer=make, link=link) for link in (1e3, 1e15))
    matrices = (11**2 + 16**2 + 17**2 + 4**2) * 16
    examined = 5 * (11 + 16 + 17 + 4)  # numbers of the five drives by which a guarded machine is examined at a refresh
    assert machine_seconds(slow.phases["refresh"]) == pytest.approx(examined * 2 * 16 / 1e3 / 2)
    assert slow.phases["refresh"].seconds_by_part["upload"] == pytest.approx(matrices / 1e3 / 2)
    jobs = slow.work["solve"].jobs
    assert sum(job.cells * job.drives * count for job, count in jobs.items()) == 2 * (16 * 11 + 4 * 17)
    assert {(job.drive_bits, job.read_bits) for job in jobs} == {(16.0 * job.cells, 16.0 * job.cells) for job in jobs}
    assert machine_seconds(slow.phases["solve"]) == pytest.approx(2 * (16 * 11 + 4 * 17) * 2 * 16 / 1e3)
    assert fast == hb.predict(build(), F.cross_entropy, batch, optimizer=make)


def test_another_machine_takes_the_place_of_the_solvers() -> None:
    build, batch = TASKS["mlp"]
    make = partial(hb.KFAC, solver=hb.ThermodynamicSolve(MACHINE))
    four = hb.with_bits(SPEC, matrix=4)
    bills = [hb.predict(build(), F.cross_entropy, batch, optimizer=make, machine=m) for m in (None, four)]
    sixteen, less = (bill.phases["refresh"].seconds_by_part["upload"] for bill in bills)
    assert sixteen == pytest.approx(4 * less)
    with pytest.raises(ValueError, match="no machine takes part"):
        hb.predict(build(), F.cross_entropy, batch, optimizer=hb.KFAC, machine=four)
    with pytest.raises(ValueError, match="for a solver that works on one"):
        hb.predict(build(), F.cross_entropy, batch, optimizer=torch.optim.AdamW, machine=four)


def test_products_of_muon_are_those_that_torch_makes() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    matrix = nn.Parameter(torch.empty(7, 5, device="meta"))
    matrix.grad = torch.empty_like(matrix)
    with WorkCounter() as counter:
        torch.optim.Muon([matrix], ns_steps=3).step()
    assert products(counter.work) == products(muon_work((7, 5), 3))


def test_muon_and_adamw_share_a_model() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    build, batch = TASKS["mlp"]

    def both(model: nn.Module) -> list[torch.optim.Optimizer]:
        parts = ([p for p in model.parameters() if (p.dim() == 2) is wanted] for wanted in (True, False))
        return [kind(part) for kind, part in zip((torch.optim.Muon, torch.optim.AdamW), parts, strict=True)]

    model = build()
    bill = hb.predict(model, F.cross_entropy, batch, optimizer=both)
    assert bill.work["solve"] == muon_work((16, 10), 5) + muon_work((4, 16), 5) + Work.of(update(20, 16, 7))
    assert hb.predict(model, F.cross_entropy, batch, optimizer=both(model)).work == bill.work


def test_a_running_optimizer_is_counted_as_a_new_one_and_nothing_is_touched() -> None:
    build, (x, y) = TASKS["cnn"]
    model = build()
    optimizer = hb.KFAC(model)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    before, random, work = copy.deepcopy(model.state_dict()), torch.get_rng_state(), optimizer.work
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    bill = hb.predict(model, F.cross_entropy, (x, y), optimizer=optimizer)
    assert torch.equal(torch.get_rng_state(), random)
    assert bill.work == hb.predict(build(), F.cross_entropy, (x, y), optimizer=hb.KFAC).work
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(torch.equal(old, p.grad) for old, p in zip(gradients, model.parameters(), strict=True) if p.grad is not None)
    assert optimizer.work == work
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()  # its hooks still see the model
    optimizer.step()
    assert optimizer.work.flops > work.flops


def test_shapes_are_enough() -> None:
    build, batch = TASKS["transformer"]
    with torch.device("meta"):
        model = build()
    shapes = tuple(t.to("meta") for t in batch)
    assert (
        hb.predict(model, F.cross_entropy, shapes, optimizer=hb.KFAC).work
        == hb.predict(build(), F.cross_entropy, batch, optimizer=hb.KFAC).work
    )


class Peeking(nn.Linear):
    """Looks at a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1 if bool(x.sum() > 0) else 2)


def test_mistakes_are_named_before_any_work() -> None:
    build, (x, y) = TASKS["mlp"]
    predict = partial(hb.predict, optimizer=hb.KFAC)
    with pytest.raises(ValueError, match=r"must return a 0-d tensor .*got a tensor of shape \(6,\)"):
        predict(build(), partial(F.cross_entropy, reduction="none"), (x, y))
    with pytest.raises(ValueError, match=r"on a batch of shapes \(6, 9\), \(6,\)"):
        predict(build(), F.cross_entropy, (x[:, :9], y))
    with pytest.raises(ValueError, match="reads values"):
        predict(Peeking(10, 4), F.cross_entropy, (x, y))
    with pytest.raises(TypeError, match="inputs and, last, the loss's targets"):
        predict(build(), F.cross_entropy, x)
    with pytest.raises(TypeError, match=r"expected nn\.Module, got list"):
        predict(list(build().parameters()), F.cross_entropy, (x, y))
    with pytest.raises(ValueError, match="run one batch through the model first"):
        predict(nn.LazyLinear(4), F.cross_entropy, (x, y))
    with pytest.raises(ValueError, match="the work of Adagrad is not counted"):
        predict(build(), F.cross_entropy, (x, y), optimizer=torch.optim.Adagrad)
    with pytest.raises(ValueError, match="the work of NGD is not counted"):
        predict(build(), F.cross_entropy, (x, y), optimizer=partial(hb.NGD, fisher=hb.EmpiricalFisher()))
    with pytest.raises(ValueError, match="not the model's"):
        predict(build(), F.cross_entropy, (x, y), optimizer=torch.optim.SGD(build().parameters()))
    model = build()
    with pytest.raises(ValueError, match="the model that it is given"):
        predict(model, F.cross_entropy, (x, y), optimizer=lambda m: torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match="positive number of bits per second, got 0"):
        predict(build(), F.cross_entropy, (x, y), link=0)
    with pytest.raises(ValueError, match="at least one machine"):
        predict(build(), F.cross_entropy, (x, y), machines=0)
    with pytest.raises(TypeError, match="got str"):
        predict(build(), F.cross_entropy, (x, y), optimizer=lambda m: "adamw")


@pytest.mark.slow
def test_the_page_prints_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "predict.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    bills = names["bills"]
    shown = [capsys.readouterr().out, str(bills["K-FAC, machine inverts"])]
    said = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert [[line.split() for line in text.splitlines()] for text in shown] == [
        [line.split() for line in text.splitlines()] for text in said
    ]
    drives, settle = 2049, 50e-6  # the longest machine of a refresh inverts by 2,049 drives
    assert machine_seconds(bills["K-FAC, machine inverts"].phases["refresh"]) == pytest.approx(drives * settle / 10)
