from __future__ import annotations

import pytest
import torch

from heatbath.operators import Dense, Diagonal, Kronecker, Shifted
from tests.zoo import spd

B, A = spd(n=3), spd(n=4, seed=1)


def test_dense_is_torch_kron():
    assert torch.equal(Kronecker(Dense(B), Dense(A)).dense(), torch.kron(B, A))


def test_a_product_is_left_times_matrix_times_right():
    """vec(B V A) = (B ⊗ A) vec(V) for V stored row by row."""
    v = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    product = Kronecker(Dense(B), Dense(A))
    torch.testing.assert_close(product @ v, B @ v @ A, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close((product @ v).flatten(), torch.kron(B, A) @ v.flatten(), rtol=1e-14, atol=1e-14)


def test_trace_is_the_product_of_traces():
    assert Kronecker(Dense(B), Dense(A)).trace().item() == pytest.approx(torch.kron(B, A).trace().item(), rel=1e-14)


def test_sides_of_different_stacks_are_refused():
    with pytest.raises(ValueError, match="both sides of a Kronecker product need one stack"):
        Kronecker(Dense(spd(2, n=3)), Diagonal(torch.ones(3, 4)))


def test_a_shift_keeps_the_dtype_of_the_sides():
    """A number must not pass through float32 on its way to a float64 operator."""
    shifted = Kronecker(Dense(B), Dense(A)).shift(0.1)
    assert isinstance(shifted, Shifted)
    assert shifted.amount.dtype == torch.float64
    assert shifted.amount.item() == 0.1
