"""Lightning's Trainer drives K-FAC: it passes a closure to every `step`, clips, accumulates, saves and resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import heatbath as hb

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: pip install -e '.[integrations]'")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*num_workers.*:UserWarning"),  # a hint about data loading
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),  # Lightning's own
]


class Classifier(pl.LightningModule):
    """Three classes by a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3))
        self.losses: list[float] = []
        self.rates: list[float] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = hb.KFAC(self.net, lr=0.1, damping=1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)


def trainer(folder: Path, **options) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **{**quiet, **options})


def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier()


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_clip_val": 1.0}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}],
    ids=["plain", "clipped", "bf16", "accumulating"],
)
def test_the_trainer_lowers_the_loss_and_its_schedule_the_rate(options, tmp_path: Path):
    model = classifier()
    parts = options.get("accumulate_grad_batches", 1)
    run = trainer(tmp_path, max_epochs=4 * parts, **options)
    run.fit(model, loader())
    updates = len(model.losses) // parts
    optimizer = run.optimizers[0]
    assert isinstance(optimizer, hb.KFAC)
    assert optimizer.steps == updates
    assert optimizer.report()["refreshes"] > 0
    assert max(model.losses[-4:]) < min(model.losses[:4])  # of every batch of the last epoch, and of the first
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5 ** (updates // 4))


class Whole(Classifier):
    """The optimizer is given the LightningModule, whose own forward is never called."""

    def configure_optimizers(self) -> hb.KFAC:
        return hb.KFAC(self, lr=0.1, damping=1e-2)


@pytest.mark.parametrize("kind", [Classifier, Whole])
def test_accumulated_batches_are_one_batch(kind, tmp_path: Path):
    ends = []
    for size, parts in ((16, 1), (8, 2)):
        torch.manual_seed(0)
        model = kind()
        data = DataLoader(loader().dataset, batch_size=size)
        trainer(tmp_path, max_epochs=1, accumulate_grad_batches=parts).fit(model, data)
        ends.append([p.detach() for p in model.parameters()])
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_a_run_resumed_from_the_trainers_checkpoint_goes_on_bit_equal(tmp_path: Path):
    whole, first, rest = classifier(), classifier(), Classifier()
    trainer(tmp_path, max_epochs=4).fit(whole, loader())
    run = trainer(tmp_path, max_epochs=2)
    run.fit(first, loader())
    run.save_checkpoint(tmp_path / "half.ckpt")
    again = trainer(tmp_path, max_epochs=4)
    again.fit(rest, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert rest.losses == whole.losses[8:]
    assert rest.rates == whole.rates[8:]
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), rest.parameters(), strict=True))
    assert again.optimizers[0].steps == 16
