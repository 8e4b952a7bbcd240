from __future__ import annotations

import shlex
import sys

import pytest
import torch

from heatbath.experiments.environment import command, host, versions


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
