"""Matrices, right-hand sides and graphs from files: .npy, or .csv with one row of the matrix, or one edge, a line."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from heatbath.operators import check_symmetric
from heatbath.solvers.door import check_definite, check_rows

ENDINGS = (".npy", ".csv")
LARGEST = 1e150  # of the magnitudes of entries
MOST_NODES = 20_000


def load_matrix(path: Path) -> Tensor:
    """A symmetric positive definite matrix, float64 `[n, n]`.

    Raises:
        FileNotFoundError: no such file.
        TypeError: numbers that are not real.
        ValueError: neither .npy nor .csv, not readable as one, or not square, finite, symmetric and positive definite.
    """
    matrix = _load(path, "the matrix")
    name = f"the matrix in {path}"
    if matrix.ndim != 2:
        raise ValueError(f"{name} must be one square matrix, [n, n], got shape {tuple(matrix.shape)}")
    check_symmetric(matrix, name)
    check_definite(torch.linalg.eigvalsh(matrix), name)
    return matrix


def load_rows(path: Path, matrix: Tensor) -> Tensor:
    """Right-hand sides for a matrix, float64 `[n]` or `[m, n]`; a single column is taken as one right-hand side.

    Raises:
        FileNotFoundError, TypeError: as `load_matrix`.
        ValueError: as `load_matrix`; a shape that does not fit, or numbers that are not finite.
    """
    rows, n = _load(path, "the right-hand side"), matrix.shape[-1]
    if rows.ndim == 2 and rows.shape in ((n, 1), (1, n)):
        rows = rows.reshape(n)
    if rows.ndim not in (1, 2):
        raise ValueError(f"the right-hand side in {path} must have shape [n] or [m, n], got {tuple(rows.shape)}")
    check_rows(matrix, rows, f"the right-hand side in {path}")
    return rows


def load_array(path: Path, what: str, *, dimensions: int) -> Tensor:
    """Numbers of any meaning, float64; where a vector is wanted, a single row or column is taken as one.

    Args:
        path: .npy or .csv.
        what: names them in messages.
        dimensions: 1 or 2.

    Raises:
        FileNotFoundError, TypeError: as `load_matrix`.
        ValueError: as `load_matrix`; another number of dimensions, or numbers that are not finite.
    """
    array = _load(path, what)
    if dimensions == 1 and array.ndim == 2 and 1 in array.shape:
        array = array.flatten()
    if array.ndim != dimensions:
        raise ValueError(f"{what} in {path} must have {dimensions} dimension(s), got shape {tuple(array.shape)}")
    bad = int((~torch.isfinite(array)).sum())
    if bad:
        raise ValueError(f"{what} in {path} holds {bad} entries that are NaN or inf")
    return array


def load_graph(path: Path) -> tuple[list[str], Tensor]:
    """A weighted graph: names of its nodes, and its symmetric weights, float64 `[n, n]`, 0 where there is no edge.

    A .npy file holds the weights themselves, with nodes named by number. A .csv file holds an edge a line: two names and, if
    it is not 1, a weight; lines that start with # are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: lines that are no edges, loops, edges that come twice, no edges, or weights that are not symmetric.
    """
    if path.suffix != ".csv":
        weights = load_array(path, "the graph", dimensions=2)
        check_symmetric(weights, f"the graph in {path}")
        return [str(i) for i in range(len(weights))], weights
    if not path.is_file():
        raise FileNotFoundError(f"the file of the graph, {path}, does not exist")
    place: dict[str, int] = {}
    edges: dict[tuple[int, int], float] = {}
    for number, cells in _csv_rows(path):
        words = [cell.strip() for cell in cells]
        if not any(words) or words[0].startswith("#"):
            continue
        a, b, weight = _edge(words, f"{path}, line {number}")
        pair = (place.setdefault(a, len(place)), place.setdefault(b, len(place)))
        if (min(pair), max(pair)) in edges:
            raise ValueError(f"{path}, line {number}: the edge {a}, {b} came before")
        edges[min(pair), max(pair)] = weight
    if not edges:
        raise ValueError(f"{path} holds no edges")
    if len(place) > MOST_NODES:
        raise ValueError(
            f"{path} names {len(place)} nodes, at most {MOST_NODES}: weights are held densely, 8 bytes for each pair of nodes"
        )
    weights = torch.zeros(len(place), len(place), dtype=torch.float64)
    for (i, j), weight in edges.items():
        weights[i, j] = weights[j, i] = weight
    return list(place), weights


def _edge(words: list[str], where: str) -> tuple[str, str, float]:
    """Two names and a weight."""
    if len(words) not in (2, 3) or not words[0] or not words[1]:
        raise ValueError(f"{where}: an edge is two names and, if not 1, a weight, got {', '.join(words)}")
    if words[0] == words[1]:
        raise ValueError(f"{where}: {words[0]} is joined to itself")
    try:
        weight = float(words[2]) if len(words) == 3 else 1.0
    except ValueError as error:
        raise ValueError(f"{where}: the weight {words[2]!r} is no number") from error
    if not -float("inf") < weight < float("inf"):
        raise ValueError(f"{where}: the weight is {weight}")
    return words[0], words[1], weight


def _load(path: Path, what: str) -> Tensor:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, _neighbours(path), n=1, cutoff=0.85)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise FileNotFoundError(f"the file of {what}, {path}, does not exist{hint}")
    if path.suffix not in ENDINGS:
        raise ValueError(f"{what} must be a .npy or .csv file, got {path}; save it with numpy.save")
    array = _load_npy(path) if path.suffix == ".npy" else _load_csv(path)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{what} in {path} must hold real numbers, got {array.dtype}; save it as float64")
    array = np.ascontiguousarray(array, dtype=np.float64)
    largest = float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))
    if largest > LARGEST:
        raise ValueError(
            f"{what} in {path} has entries up to {largest:.3g}, at most {LARGEST:g}: scale them, or squares overflow"
        )
    return torch.from_numpy(array)


def _neighbours(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Numbers of lines, and their cells.

    Raises:
        ValueError: not text in UTF-8, or cells of more than 131,072 characters.
    """
    number = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, cells in enumerate(csv.reader(file), start=1):
                yield number, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a .csv file in UTF-8, after line {number}: {error}") from error


def _load_npy(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header makes numpy raise nearly anything, MemoryError too
        raise ValueError(f"{path} cannot be read as a .npy file of numbers: {error}") from error
    if not isinstance(loaded, np.ndarray):
        raise ValueError(f"{path} is an archive of several arrays; save the one that is meant with numpy.save")
    return loaded


def _load_csv(path: Path) -> np.ndarray:
    rows: list[list[float]] = []
    for number, cells in _csv_rows(path):
        if not any(cell.strip() for cell in cells):
            continue
        try:
            rows.append([float(cell) for cell in cells])
        except ValueError as error:
            reason = str(error)[:120]
            raise ValueError(f"{path}, line {number}: {reason}; a .csv file holds numbers only, no titles") from error
        if len(rows[-1]) != len(rows[0]):
            raise ValueError(f"{path}, line {number}: {len(rows[-1])} numbers, the lines before have {len(rows[0])}")
    if not rows:
        raise ValueError(f"{path} holds no numbers")
    return np.array(rows)
