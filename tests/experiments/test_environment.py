from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heatbath.experiments.environment import command, commit, host, versions
from heatbath.experiments.studies import Page
from tests.experiments import tasks


def test_versions_are_those_that_run() -> None:
    found = versions()
    assert found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_the_host_is_described_without_names() -> None:
    facts = host(torch.device("cpu"))
    assert facts["device"] == "cpu"
    assert facts["threads"] == torch.get_num_threads()
    assert not {"user", "hostname", "node"} & facts.keys()


def test_the_command_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/heatbath", "train", "digits-mlp", "--out", "a folder"])
    assert shlex.split(command()) == ["heatbath", "train", "digits-mlp", "--out", "a folder"]


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_of_the_code_and_whether_it_was_changed(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "code.py").write_text("x = 1")
    assert commit(package) == "unknown"  # no checkout
    git(tmp_path, "init", "-q")
    (tmp_path / "page.md").write_text("a page")
    git(tmp_path, "add", "page.md")
    git(tmp_path, "commit", "-q", "-m", "a page")
    commit.cache_clear()
    assert commit(package) == "unknown"  # installed inside somebody else's checkout
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-q", "-m", "code")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "page.md").write_text("pages are made by the code and do not change it")
    commit.cache_clear()
    assert commit(package) == head
    for change in (lambda: (package / "code.py").write_text("x = 2"), lambda: (package / "more.py").write_text("")):
        change()
        commit.cache_clear()
        assert commit(package) == f"{head} + uncommitted changes"
        git(tmp_path, "checkout", "-q", "package/code.py")


def test_records_and_pages_carry_the_commit(tmp_path: Path) -> None:
    record = tasks.train(tmp_path, steps=1)
    assert record.header["versions"]["commit"] == commit()
    page = Page("x", [], [], {}, [], {}, {}).write(tmp_path / "page")
    for name in ("README.md", "index.html", "result.json"):
        assert commit() in (page.parent / name).read_text()
