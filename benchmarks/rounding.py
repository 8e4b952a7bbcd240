"""How far does rounding a matrix move its inverse?

    python benchmarks/rounding.py

n = 64, eigenvalues log-spaced from 1 to 1/κ, random eigenvectors, float64; each entry is rounded to the nearest of 2ᵇ − 1
levels between ± full scale, which is the largest entry (as the machine has it) or the largest eigenvalue. The error is the
Frobenius norm of the difference of the inverses over that of the inverse; nothing but the matrix is rounded.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from heatbath.experiments.environment import host, versions
from heatbath.machines.converters import quantize

RESULTS = Path(__file__).parent / "results" / "rounding.json"
N, DRAWS = 64, 400
CONDITIONS, BITS = (10.0, 100.0, 1000.0), (6, 8, 10, 12)


def matrices(condition: float) -> torch.Tensor:
    """`[DRAWS, N, N]`."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(DRAWS, N, N, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(0, -math.log10(condition), N, dtype=torch.float64)
    return basis @ torch.diag(values) @ basis.mT


def errors(matrix: torch.Tensor, bits: int, full_scale: torch.Tensor) -> dict[str, float]:
    """Median of the errors, the range of nine tenths, the share above 250 %, and the share of indefinite matrices."""
    rounded = quantize(matrix, bits, full_scale[:, None, None])[0]
    exact = torch.linalg.inv(matrix)
    error = (torch.linalg.inv(rounded) - exact).norm(dim=(-2, -1)) / exact.norm(dim=(-2, -1))
    low, median, high = error.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    indefinite = (torch.linalg.eigvalsh(rounded)[:, 0] <= 0).double().mean().item()
    above = (error > 2.5).double().mean().item()
    return {"median": median, "low": low, "high": high, "above 250 %": above, "indefinite": indefinite}


def main() -> None:
    rows: list[dict[str, Any]] = []  # Any: JSON values
    for condition in CONDITIONS:
        matrix = matrices(condition)
        ranges = {"entry": matrix.abs().amax((-2, -1)), "eigenvalue": torch.ones(DRAWS, dtype=torch.float64)}
        for bits in BITS:
            for name, full_scale in ranges.items():
                rows.append({"condition": condition, "bits": bits, "range": name, **errors(matrix, bits, full_scale)})
    record = {"n": N, "draws": DRAWS, "conditions": CONDITIONS, "bits": BITS, "rows": rows}
    record["environment"] = {**host(torch.device("cpu")), "packages": versions()}
    RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
