"""benchmarks/gpu.py runs from end to end; what it is for, a GPU, is not here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_the_gpu_benchmark_runs_in_small_on_the_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    contestants = ["AdamW, fused", "hb.KFAC", "hb.KFAC, staggered", "Muon + AdamW"]
    options = ["--device", "cpu", "--tiny", "--cycles", "1", "--write", "--out", str(out), "--contestants", *contestants]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text(encoding="utf-8"))
    assert list(record["workloads"]) == ["gpt", "vit", "mlp"]
    for found in record["workloads"].values():
        assert [row["name"] for row in found["rows"]] == contestants
        for row in found["rows"]:
            assert row["steps"] == 10
            assert all(math.isfinite(row[key]) and row[key] > 0 for key in ("ratio", "median", "p99", "host"))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no CUDA device is here" in done.stderr
