from __future__ import annotations

import pytest
import torch
from torch import nn

from heatbath.curvature import Categorical, ExactFisher, SampledFisher
from heatbath.experiments import choose
from heatbath.experiments.baselines import PACKAGES
from heatbath.experiments.experiment import LossTerms
from heatbath.experiments.optimizers import NGD_LIMIT, OPTIMIZERS, SELF_PACED, SOLVERS_OF, build, choose_all
from heatbath.machines import load_machine
from heatbath.optim import KFAC, KLClip
from heatbath.solvers import Guarded
from tests.experiments import tasks


def every_choice() -> list[dict[str, str]]:
    plain = [{"optimizer": name} for name in OPTIMIZERS.keys() - SOLVERS_OF.keys() - PACKAGES.keys()]
    curved = [{"optimizer": name, "solver": solver} for name, solvers in SOLVERS_OF.items() for solver in solvers]
    return sorted(plain, key=str) + curved


@pytest.mark.parametrize("words", every_choice(), ids=lambda words: "-".join(words.values()))
def test_every_choice_builds_an_optimizer_that_lowers_the_loss(words: dict[str, str], generator: torch.Generator) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    task = tasks.experiment()
    optimizer = build(choose(task, **words), model, terms=task.terms, generator=generator)
    inputs, labels = tasks.blobs().train.batch(torch.arange(96))
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        outputs = model(inputs)
        if words["optimizer"] in SOLVERS_OF:
            optimizer.observe(outputs)  # type: ignore[attr-defined]
        loss = nn.functional.cross_entropy(outputs, labels)
        loss.backward()
        if words["optimizer"] in SELF_PACED:
            optimizer.step(evaluate=lambda: nn.functional.cross_entropy(model(inputs), labels))
        else:
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_open_options_are_filled_in_by_the_recipe_and_given_ones_win() -> None:
    choice = choose(tasks.experiment(), "kfac")
    assert (choice.hyper.lr, choice.hyper.damping, choice.solver) == (0.1, 1e-2, "cholesky")
    given = choose(tasks.experiment(), "kfac", lr=0.3, damping=0.5)
    assert (given.hyper.lr, given.hyper.damping) == (0.3, 0.5)
    assert choose(tasks.experiment(), "adam").hyper.lr == 1e-3


def test_bits_set_all_converters_of_the_chosen_machine() -> None:
    machine = choose(tasks.experiment(), "kfac", solver="thermodynamic-solve", bits=6).machine
    assert machine is not None
    assert machine.name == "tngd-2024"
    assert (machine.matrix_bits, machine.drive_bits, machine.read_bits) == (6, 6, 6)


def test_without_bits_the_machine_is_as_published() -> None:
    assert choose(tasks.experiment(), "kfac", solver="thermodynamic-inverse").machine == load_machine("tngd-2024")


def test_a_thermodynamic_solver_has_a_digital_one_behind_it(generator: torch.Generator) -> None:
    choice = choose(tasks.experiment(), "kfac", solver="thermodynamic-solve")
    optimizer = build(choice, nn.Linear(6, 3), generator=generator)
    assert isinstance(optimizer, KFAC)
    assert isinstance(optimizer.solver.inner, Guarded)


def test_a_choice_is_recorded_completely() -> None:
    choice = choose(tasks.experiment(), "kfac", solver="thermodynamic-solve", bits=8)
    recorded = choice.to_json()
    hyper = {"lr", "damping", "kl_clip", "momentum", "weight_decay", "square_decay"}
    assert recorded.keys() == {"optimizer", "solver", "machine"} | hyper
    assert recorded["kl_clip"] == KLClip().kappa  # the recipe leaves it open
    assert choice.label == "kfac-thermodynamic-solve-tngd-2024-8bit"
    assert choice.title == "K-FAC, thermodynamic solve (tngd-2024, 8 bits)"


def test_the_quadratic_policy_has_no_clip_and_its_own_name(generator: torch.Generator) -> None:
    choice = choose(tasks.experiment(), "kfac-quadratic", solver="thermodynamic-inverse", bits=8)
    assert (choice.hyper.lr, choice.hyper.kl_clip, choice.hyper.momentum) == (1.0, None, 0.0)
    assert choice.title == "K-FAC, quadratic model, thermodynamic inverse (tngd-2024, 8 bits)"
    terms = LossTerms(Categorical())
    optimizer = build(choice, nn.Linear(6, 3), terms=terms, generator=generator)
    assert isinstance(optimizer, KFAC)
    assert isinstance(optimizer.policy.fisher, SampledFisher)
    assert optimizer.policy.fisher.likelihood is terms.likelihood
    assert optimizer.policy.quadratic is not None
    assert optimizer.policy.adapt is not None


def test_the_quadratic_policy_keeps_a_fisher_that_the_task_chose(generator: torch.Generator) -> None:
    terms = LossTerms(Categorical(), fisher=ExactFisher(Categorical()))
    optimizer = build(choose(tasks.experiment(), "kfac-quadratic"), nn.Linear(6, 3), terms=terms, generator=generator)
    assert isinstance(optimizer, KFAC)
    assert optimizer.policy.fisher is terms.fisher


def test_advice_names_what_can_be_changed() -> None:
    choice = choose(tasks.experiment(), "kfac", solver="thermodynamic-solve", bits=8)
    assert choice.advice() == "lower --lr (now 0.1) or raise --damping (now 0.01) or --bits (now 8)"
    assert choose(tasks.experiment(), "sgd").advice() == "lower --lr (now 0.1)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"optimizer": "kfca"}, "there is no optimizer 'kfca'; did you mean kfac"),
        ({"optimizer": "kfac", "solver": "choleski"}, "there is no solver 'choleski'; did you mean cholesky"),
        ({"optimizer": "adamw", "solver": "eigen"}, "--solver has no meaning for adamw"),
        ({"optimizer": "adamw", "damping": 0.1}, "--damping has no meaning for adamw"),
        (
            {"optimizer": "ngd", "solver": "eigen"},
            "ngd takes --solver cholesky or conjugate-gradient or .* got eigen",
        ),
        ({"optimizer": "tngd", "solver": "cholesky"}, "tngd takes --solver thermodynamic-solve, got cholesky"),
        ({"optimizer": "kfac", "machine": "ideal"}, "--machine has no meaning without a thermodynamic solver"),
        ({"optimizer": "kfac", "bits": 8}, "--bits has no meaning without a thermodynamic solver"),
        ({"optimizer": "kfac", "lr": -1.0}, "--lr must be a positive number, got -1.0"),
        ({"optimizer": "kfac", "lr": float("nan")}, "--lr must be a positive number, got nan"),
        ({"optimizer": "kfac", "damping": 0.0}, "--damping must be a positive number, got 0.0"),
        ({"optimizer": "kfac", "solver": "thermodynamic-solve", "machine": "tngd"}, "did you mean 'tngd-2024'"),
    ],
)
def test_words_that_mean_nothing_are_refused(words: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(tasks.experiment(), **words)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "nadamw", "muon"])
def test_a_model_without_parameters_is_refused(name: str, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="no trainable parameters: nothing to optimize"):
        build(choose(tasks.experiment(), name), nn.Tanh(), generator=generator)


@pytest.mark.parametrize("name", ["ngd", "tngd", "kfac-quadratic"])
def test_methods_with_a_likelihood_refuse_a_loss_of_which_no_likelihood_is_known(name: str, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=f"{name} takes its Fisher matrix from the likelihood of the loss"):
        build(choose(tasks.experiment(), name), nn.Linear(6, 3), terms=LossTerms(), generator=generator)


def test_joint_methods_refuse_a_model_that_is_too_large_and_say_what_takes_it(generator: torch.Generator) -> None:
    task, model = tasks.experiment(), nn.Linear(NGD_LIMIT // 3, 3)
    with pytest.raises(ValueError, match=r"up to 100,000, this model has 100,002. Use --solver conjugate-gradient, or"):
        build(choose(task, "ngd"), model, terms=task.terms, generator=generator)
    build(choose(task, "ngd", solver="conjugate-gradient"), model, terms=task.terms, generator=generator)
    with pytest.raises(
        ValueError, match="tngd needs a cell for each parameter and is emulated up to 4,096, this model has 100,002"
    ):
        build(choose(task, "tngd"), model, terms=task.terms, generator=generator)


def test_of_several_solvers_each_optimizer_gets_those_it_takes() -> None:
    words = {"optimizers": ["kfac", "ngd", "tngd"], "solvers": ["eigen", "conjugate-gradient"]}
    found = choose_all(tasks.experiment(), **words)  # type: ignore[arg-type]
    assert [choice.label for choice in found] == [
        "kfac-eigen",
        "ngd-conjugate-gradient",
        "tngd-thermodynamic-solve-tngd-2024-16bit",
    ]
    assert [choice.title for choice in found[1:]] == [
        "NGD, conjugate gradients",
        "TNGD, thermodynamic solve (tngd-2024, 16 bits)",
    ]


def test_words_that_stand_for_several_choices_give_each_of_them_once() -> None:
    words = {"optimizers": ["adamw", "kfac", "adamw"], "solvers": ["cholesky", "thermodynamic-solve"], "bits": [8, 12]}
    found = choose_all(tasks.experiment(), **words)  # type: ignore[arg-type]
    assert [choice.label for choice in found] == [
        "adamw",
        "kfac-cholesky",
        "kfac-thermodynamic-solve-tngd-2024-8bit",
        "kfac-thermodynamic-solve-tngd-2024-12bit",
    ]
    assert [choice.label for choice in choose_all(tasks.experiment(), ["kfac"])] == ["kfac-cholesky"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"optimizers": ["adamw"], "solvers": ["eigen"]}, "--solver has no meaning for adamw: add --optimizer kfac"),
        ({"optimizers": ["kfac", "ngd"], "solvers": ["eigen"]}, "ngd takes --solver cholesky or .* got eigen"),
        ({"optimizers": ["tngd"], "solvers": ["eigne"]}, "there is no solver 'eigne'; did you mean eigen"),
        ({"optimizers": ["kfac"], "bits": [8]}, "--bits has no meaning without a thermodynamic solver"),
        ({"optimizers": ["kfac"], "machine": "ideal"}, "--machine has no meaning without a thermodynamic solver"),
        ({"optimizers": ["adamw", "kfca"]}, "there is no optimizer 'kfca'; did you mean kfac"),
    ],
)
def test_words_that_none_of_the_optimizers_takes_are_refused(words: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_all(tasks.experiment(), **words)  # type: ignore[arg-type]
