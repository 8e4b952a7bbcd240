"""Accelerate drives K-FAC: `accelerator.prepare(model, optimizer, loader)` wraps it in an AcceleratedOptimizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import heatbath as hb

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: pip install -e '.[integrations]'")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_state() -> None:
    """Accelerate keeps one state for the whole process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3))


def data(size: int = 16) -> DataLoader:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=size)


def prepare(precision: str = "no", parts: int = 1, seed: int = 0, size: int = 16):
    """Accelerator, model, optimizer, schedule, loader, all prepared."""
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=parts)
    model = network(seed)
    optimizer = hb.KFAC(model, lr=0.1, damping=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
    return accelerator, *accelerator.prepare(model, optimizer, schedule, data(size))


def train(accelerator, model: nn.Module, optimizer, schedule, loader, *, epochs: int) -> list[float]:
    """Accelerate's documented loop."""
    losses = []
    for x, y in (batch for _ in range(epochs) for batch in loader):
        with accelerator.accumulate(model):
            loss: Tensor = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_loop_lowers_the_loss_and_its_schedule_the_rate(precision, parts):
    prepared = prepare(precision, parts)
    losses = train(*prepared, epochs=4 * parts)
    optimizer = prepared[2]
    assert isinstance(optimizer, accelerate.optimizer.AcceleratedOptimizer)
    assert optimizer.optimizer.steps == 16
    assert optimizer.optimizer.report()["refreshes"] > 0
    assert max(losses[-4:]) < min(losses[:4])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)


def test_accumulated_batches_are_one_batch():
    ends = []
    for size, parts in ((16, 1), (8, 2)):
        prepared = prepare(parts=parts, size=size)
        train(*prepared, epochs=1)
        ends.append([p.detach() for p in prepared[1].parameters()])
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_a_run_resumed_from_accelerates_checkpoint_goes_on_bit_equal(tmp_path: Path):
    first = prepare()
    train(*first, epochs=2)
    first[0].save_state(str(tmp_path))
    whole = train(*first, epochs=2)
    second = prepare(seed=1)
    second[0].load_state(str(tmp_path))
    assert train(*second, epochs=2) == whole
    assert all(torch.equal(p, q) for p, q in zip(first[1].parameters(), second[1].parameters(), strict=True))
    assert second[2].optimizer.steps == 16
