"""The thermox side of `emulators.py`, run by a Python that has thermox (and jax) and not heatbath.

python emulators_thermox.py problems.npz answers.npz > timings.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import jax
import numpy as np
import thermox
from thermox.utils import preprocess_drift_matrix


def timed(work: Callable[[jax.Array], jax.Array], repeats: int, seed: int) -> tuple[list[float], np.ndarray]:
    """CPU seconds of each run, all threads together, and the results."""
    seconds, results = [], []
    for key in jax.random.split(jax.random.PRNGKey(seed), repeats):
        begin = time.process_time()
        results.append(np.asarray(jax.block_until_ready(work(key))))
        seconds.append(time.process_time() - begin)
    return seconds, np.stack(results)


def solves(problem: dict[str, np.ndarray], n: int, answers: dict[str, np.ndarray]) -> dict[str, float]:
    """Seconds of a solve: with compilation, without, and with the decomposition cached."""
    matrix, drive = jax.numpy.asarray(problem[f"matrix{n}"]), jax.numpy.asarray(problem[f"drive{n}"])
    reads, repeats = int(problem["reads"]), int(problem["repeats"])
    options = {"num_samples": reads - 1, "dt": float(problem["dt"]), "burnin": int(problem["burn_in"])}
    full, first = timed(lambda key: thermox.linalg.solve(matrix, drive, key=key, **options), 1 + repeats, n)
    cache = preprocess_drift_matrix(matrix)
    cached, second = timed(lambda key: thermox.linalg.solve(cache, drive, key=key, **options), 1 + repeats, n + 1)
    answers[f"solve{n}"] = np.concatenate([first, second])
    return {"compiling": full[0], "uncached": min(full[1:]), "cached": min(cached[1:])}


def inverses(problem: dict[str, np.ndarray], n: int, answers: dict[str, np.ndarray]) -> dict[str, float]:
    """Seconds of an inverse from the covariance, with compilation and without."""
    matrix = jax.numpy.asarray(problem[f"matrix{n}"])
    options = {"num_samples": int(problem["inverse_reads"]) - 1, "dt": float(problem["dt"]), "burnin": int(problem["burn_in"])}
    seconds, results = timed(lambda key: thermox.linalg.inv(matrix, key=key, **options), 2, n)
    answers[f"inverse{n}"] = results[-1]
    return {"compiling": seconds[0], "uncached": seconds[1]}


def uneven(problem: dict[str, np.ndarray], answers: dict[str, np.ndarray], coupling: float) -> None:
    """Stationary covariance of two coupled nodes with noise of different strength: stated, and of samples."""
    matrix, noise = (jax.numpy.asarray(problem[f"uneven_{name}_{coupling}"]) for name in ("matrix", "noise"))
    answers[f"uneven_stated_{coupling}"] = np.asarray(thermox.conditional.covariance(200.0, matrix, noise))
    times = jax.numpy.concatenate([jax.numpy.array([0.0]), 200.0 + 20.0 * jax.numpy.arange(20_000)])
    zero = jax.numpy.zeros(2)
    samples = np.asarray(thermox.sample(jax.random.PRNGKey(0), times, zero, matrix, zero, noise, associative_scan=False))
    answers[f"uneven_sampled_{coupling}"] = np.cov(samples[1:].T)


def main() -> None:
    problem = dict(np.load(sys.argv[1]))
    answers: dict[str, np.ndarray] = {}
    rows = {}
    for n in problem["sizes"].tolist():
        rows[str(n)] = {"solve": solves(problem, n, answers), "inverse": inverses(problem, n, answers)}
    for coupling in problem["couplings"].tolist():
        uneven(problem, answers, coupling)
    np.savez(sys.argv[2], **answers)
    packages = {name: version(name) for name in ("thermox", "jax", "jaxlib", "numpy", "fmmax")}
    print(json.dumps({"rows": rows, "packages": packages}))


if __name__ == "__main__":
    main()
