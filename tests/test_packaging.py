"""What the package needs and how it starts: dependencies, extras, imports, answers without a missing extra."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import networkx
import numpy as np
import pytest
import torch

from heatbath.cli.options import RECIPES
from heatbath.machines.pbits.network import greedy_colours
from heatbath.recipes import recipes

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
HIDE = "import sys\nsys.modules.update(dict.fromkeys({names!r}))\nsys.argv = {argv!r}\n"  # None there: no such module


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Another process, for what it has imported; without a word of a user's settings."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )


def without(names: set[str], code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The same where some packages are not installed."""
    return python(HIDE.format(names=names, argv=["heatbath", *words]) + code)


COMMAND = "from heatbath.__main__ import main\nmain()"


def test_the_core_needs_torch_and_numpy_alone():
    assert sorted(re.split(r"[^\w-]", d)[0] for d in PROJECT["project"]["dependencies"]) == ["numpy", "torch"]


def test_the_lowest_torch_is_one_that_tests_run_on():
    """The bound, the environment of `make test-oldest` and that of .ci/run name the same version."""
    lowest = next(d for d in PROJECT["project"]["dependencies"] if d.startswith("torch")).removeprefix("torch>=")
    makefile, script = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", ".ci/run"))
    assert f"OLDEST_TORCH := {lowest}.0\n" in makefile
    assert f"torch=={lowest}.0}}" in script


def test_the_development_extra_holds_all_others_that_users_take():
    assert "heatbath[all]" in EXTRAS["dev"]
    assert EXTRAS["dev"] == PROJECT["dependency-groups"]["dev"]


def test_heavy_parts_of_torch_are_imported_only_when_used():
    done = python("import sys, torch\nbefore = set(sys.modules)\nimport heatbath as hb\nhb.KFAC\n"
                  "print(*sorted(set(sys.modules) - before))")  # fmt: skip
    assert done.returncode == 0, done.stderr
    new = done.stdout.split()
    assert "heatbath.optim.kfac" in new
    heavy = ("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "sympy", "networkx", "scipy", "matplotlib")
    assert not [name for name in new if name.startswith(heavy)]


def test_a_network_learns_and_a_machine_solves_without_any_extra():
    names = {"scipy", "sklearn", "matplotlib", "pooch", "tensorboard", "typer", "rich", "PIL", "pydantic"}
    done = without(names, """
import torch, heatbath as hb
torch.manual_seed(0)
model = torch.nn.Linear(5, 3)
x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
machine = hb.Machine(hb.load_machine("tngd-2024"))
opt = hb.KFAC(model, lr=0.1, damping=1e-2, solver=hb.ThermodynamicSolve(machine))
for step in range(5):
    opt.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    if step == 0: first = float(loss)
    opt.step()
assert float(loss) < first, (first, float(loss))
""")  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_the_command_says_which_extra_it_needs(package):
    done = without({package}, COMMAND, "machines")
    assert done.returncode == 2
    assert done.stderr == f"heatbath: this needs the package {package}: pip install 'heatbath[cli]'\n"


@pytest.mark.parametrize("package, extra", [("matplotlib", "plots"), ("tensorboard", "studies"), ("sklearn", "studies")])
def test_a_run_says_which_extra_it_needs(package, extra, tmp_path):
    done = without({package}, COMMAND, "train", "digits-mlp", "--out", str(tmp_path / "out"), "--steps", "1")
    assert done.returncode == 2, done.stderr
    assert f"pip install 'heatbath[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_sampling_says_what_its_diagnostics_need(tmp_path):
    np.save(tmp_path / "L.npy", np.diag([1.0, 2.0]))
    (tmp_path / "m.toml").write_text('name = "cells"\ntau = 1e-6\nnoise_volts_rms = 0.02\n', encoding="utf-8")
    words = ("--precision", str(tmp_path / "L.npy"), "--machine", str(tmp_path / "m.toml"), "--reads", "5")
    done = without({"arviz_stats", "arviz_stats.base"}, COMMAND, "sample", *words)
    assert done.returncode == 0, done.stderr
    assert "need arviz-stats, pip install 'heatbath[studies]'" in done.stdout


def test_the_example_says_what_it_needs():
    path = ROOT / "examples" / "bayesian_regression.py"
    done = without({"arviz_stats", "arviz_stats.base"}, f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')")
    assert done.returncode == 1
    assert done.stderr == "bayesian_regression.py judges samples by arviz-stats: pip install 'heatbath[studies]'\n"


def test_a_mistyped_recipe_is_answered_before_torch_is_imported():
    done = without({"torch"}, COMMAND, "train", "digits-mpl")
    assert done.returncode == 2
    assert "there is no recipe 'digits-mpl'; did you mean digits-mlp? known: digits-mlp, " in done.stderr


def test_names_of_recipes_are_those_of_the_recipes():
    assert list(RECIPES) == list(recipes())


def test_colours_are_those_of_another_dsatur():
    """Networkx's, on random graphs of several densities, an empty one and a complete one."""
    torch.manual_seed(0)
    for n, density in ((1, 0.0), (12, 0.0), (12, 1.0), (30, 0.1), (30, 0.4), (60, 0.05), (60, 0.8)):
        upper = (torch.rand(n, n) < density).triu(1)
        neighbours = [row.nonzero().flatten().tolist() for row in upper | upper.T]
        graph = networkx.Graph()
        graph.add_nodes_from(range(n))
        graph.add_edges_from((i, j) for i in range(n) for j in neighbours[i])
        theirs = networkx.greedy_color(graph, strategy="DSATUR")
        mine = greedy_colours(neighbours)
        assert all(mine[i] != mine[j] for i in range(n) for j in neighbours[i])
        assert max(mine) == max(theirs.values())


def test_every_text_file_is_written_in_utf_8():
    """What is opened as text names its encoding: Windows would take another."""
    for path in (ROOT / "src").rglob("*.py"):
        for call in re.finditer(
            r"(?:write_text|read_text)\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", path.read_text(encoding="utf-8")
        ):
            assert "encoding" in call.group(), f"{path}: {call.group()}"


def test_python_versions_are_classified():
    stated = {
        c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if c.startswith("Programming Language :: Python :: 3.")
    }
    assert stated == {"3.11", "3.12", "3.13", "3.14"}


def test_the_installed_metadata_has_the_extras():
    assert {"cli", "plots", "studies", "all", "dev"} <= set(EXTRAS)
    assert importlib.metadata.version("heatbath") == PROJECT["project"]["version"]
