"""Matrices and right-hand sides from files, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from heatbath.experiments.arrays import load_graph, load_matrix, load_rows

MATRIX = np.array([[2.0, -0.5, 0.0], [-0.5, 1.0, 0.25], [0.0, 0.25, 3.0]])


def saved(folder: Path, array: object, name: str = "A.npy") -> Path:
    np.save(folder / name, array)  # type: ignore[arg-type]  # bad ones, too
    return folder / name


def written(folder: Path, text: str, name: str = "A.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, ">f8"])
def test_a_matrix_of_any_real_numbers_becomes_float64(dtype: object, tmp_path: Path) -> None:
    matrix = load_matrix(saved(tmp_path, (4 * MATRIX).astype(dtype)))
    assert matrix.dtype == torch.float64
    assert matrix.numpy() == pytest.approx((4 * MATRIX).astype(dtype).astype(float), abs=0)


def test_a_text_file_holds_the_same_numbers(tmp_path: Path) -> None:
    text = "\ufeff" + "\n".join(",".join(repr(float(v)) for v in row) for row in MATRIX) + "\n\n"
    assert load_matrix(written(tmp_path, text)).numpy() == pytest.approx(MATRIX, abs=0)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3)])
def test_one_right_hand_side_may_be_a_row_or_a_column(shape: tuple[int, ...], tmp_path: Path) -> None:
    rhs = load_rows(saved(tmp_path, np.arange(3.0).reshape(shape), "b.npy"), torch.from_numpy(MATRIX))
    assert rhs.tolist() == [0.0, 1.0, 2.0]


def test_several_right_hand_sides_are_rows(tmp_path: Path) -> None:
    assert load_rows(saved(tmp_path, np.ones((5, 3)), "b.npy"), torch.from_numpy(MATRIX)).shape == (5, 3)


@pytest.mark.parametrize(
    "array,error,message",
    [
        (MATRIX[:2], ValueError, r"A.npy must be square, .* got shape \(2, 3\)"),
        (MATRIX[0], ValueError, r"A.npy must be one square matrix, \[n, n\], got shape \(3,\)"),
        (np.stack([MATRIX, MATRIX]), ValueError, r"A.npy must be one square matrix, \[n, n\], got shape \(2, 3, 3\)"),
        (np.zeros((0, 0)), ValueError, r"A.npy must be square, .* got shape \(0, 0\)"),
        (np.triu(MATRIX), ValueError, r"A.npy is not symmetric: .* use \(A \+ Aᵀ\)/2"),
        (MATRIX - 2 * np.eye(3), ValueError, r"A.npy is not positive definite: the eigenvalues reach from -1.2.* add damping"),
        (np.where(MATRIX == 1, np.nan, MATRIX), ValueError, r"A.npy holds 1 entries that are NaN or inf, of 9"),
        (
            MATRIX.astype(complex),
            TypeError,
            r"the matrix in .*A.npy must hold real numbers, got complex128; save it as float64",
        ),
        (MATRIX > 0, TypeError, r"must hold real numbers, got bool"),
        (MATRIX.astype(str), TypeError, r"must hold real numbers, got <U"),
        (MATRIX.astype(object), ValueError, r"A.npy cannot be read as a .npy file of numbers: Object arrays"),
    ],
)
def test_what_is_no_matrix_of_a_machine_is_refused(array: np.ndarray, error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        load_matrix(saved(tmp_path, array))


@pytest.mark.parametrize(
    "text,message",
    [
        ("1,0\n0,x\n", r"A.csv, line 2: could not convert string to float: 'x'; a .csv file holds numbers only, no titles"),
        ("1,0\n\n0\n", r"A.csv, line 3: 1 numbers, the lines before have 2"),
        (" \n\n", r"A.csv holds no numbers"),
        ("1,inf\ninf,1\n", r"A.csv holds 2 entries that are NaN or inf"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_matrix(written(tmp_path, text))


def test_files_that_are_not_there_or_not_of_a_known_kind_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, MATRIX, "hessian.npy")
    with pytest.raises(
        FileNotFoundError, match=r"the file of the matrix, .*hesian.npy, does not exist; did you mean .*hessian.npy"
    ):
        load_matrix(tmp_path / "hesian.npy")
    with pytest.raises(FileNotFoundError, match=r"nowhere/A.npy, does not exist$"):
        load_matrix(tmp_path / "nowhere" / "A.npy")
    with pytest.raises(ValueError, match=r"the matrix must be a .npy or .csv file, got .*A.mat; save it with numpy.save"):
        load_matrix(written(tmp_path, "1", "A.mat"))
    with pytest.raises(ValueError, match=r"A.npy cannot be read as a .npy file of numbers"):
        load_matrix(written(tmp_path, "not numpy's", "A.npy"))
    with pytest.raises(ValueError, match=r"A.npy cannot be read as a .npy file of numbers"):
        load_matrix(written(tmp_path, "", "A.npy"))
    np.savez(tmp_path / "two.npz", a=MATRIX, b=MATRIX)
    (tmp_path / "two.npz").rename(tmp_path / "two.npy")
    with pytest.raises(ValueError, match=r"two.npy is an archive of several arrays"):
        load_matrix(tmp_path / "two.npy")


@pytest.mark.parametrize(
    "array,message",
    [
        (np.ones(4), r"the right-hand side in .*b.npy must have shape \[\*batch, 3\], got \(4,\)"),
        (np.ones((3, 2)), r"must have shape \[\*batch, 3\], got \(3, 2\); right-hand sides are rows"),
        (np.ones((2, 2, 3)), r"must have shape \[n\] or \[m, n\], got \(2, 2, 3\)"),
        (np.array([1.0, np.inf, 0.0]), r"b.npy holds NaN or inf"),
    ],
)
def test_what_is_no_right_hand_side_is_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_rows(saved(tmp_path, array, "b.npy"), torch.from_numpy(MATRIX))


@pytest.mark.parametrize("load", [load_graph, load_matrix])
@pytest.mark.parametrize("content", [b"\xff\xfe1,2\n", b"1" * 140_000 + b",2\n"])
def test_a_csv_file_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, load: Callable[[Path], object], content: bytes
) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.csv cannot be read as a \.csv file in UTF-8, after line 0"):
        load(path)


@pytest.mark.parametrize("shape", ["(1000000000, 1000000000)", "(" * 3000, "(10**400,)"])
def test_a_npy_header_that_cannot_be_is_refused_by_name(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "m.npy"
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ValueError, match=r"m\.npy cannot be read as a \.npy file of numbers"):
        load_matrix(path)


def test_a_graph_that_does_not_fit_into_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    path.write_text("".join(f"a{i},b{i}\n" for i in range(10_001)))
    with pytest.raises(ValueError, match="names 20002 nodes, at most 20000"):
        load_graph(path)


def test_entries_whose_squares_overflow_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", 1e308 * np.eye(3))
    with pytest.raises(ValueError, match=r"has entries up to 1e\+308, at most 1e\+150: scale them"):
        load_matrix(tmp_path / "m.npy")
