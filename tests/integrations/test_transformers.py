"""Hugging Face's Trainer drives K-FAC: `Trainer(optimizers=(optimizer, schedule))`, no closure, no downloads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import heatbath as hb

pytest.importorskip("accelerate", reason="accelerate is not installed: pip install -e '.[integrations]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[integrations]'")

pytestmark = pytest.mark.slow
VOCABULARY, LENGTH = 13, 8
SMALL = {"attn_implementation": "eager", "vocab_size": VOCABULARY}
OPTIONS = {"plain": {}, "bf16": {"bf16": True}, "accumulating": {"gradient_accumulation_steps": 2}}


class Counting(Dataset):
    """Sequences that count up modulo the size of the vocabulary; the next token is certain."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = (torch.arange(LENGTH) + index) % VOCABULARY
        return {"input_ids": tokens, "labels": tokens}


def gpt() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=LENGTH, bos_token_id=0, eos_token_id=0, **SMALL
    )
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertForMaskedLM(transformers.BertConfig(max_position_embeddings=LENGTH, **sizes, **SMALL))


def start(make, folder: Path, **options) -> tuple[transformers.Trainer, hb.KFAC]:
    """A Trainer with K-FAC and a schedule that halves the rate every eight steps."""
    torch.manual_seed(0)
    model = make()
    optimizer = hb.KFAC(model, lr=0.1, damping=1e-2, policy=hb.Policy(reduction=hb.Reduction.ROWS))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=8, gamma=0.5)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=16,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=Counting(), optimizers=(optimizer, schedule))
    return trainer, optimizer


def losses(trainer: transformers.Trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("make", [gpt, bert])
@pytest.mark.parametrize(
    "options", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}], ids=["plain", "bf16", "accumulating"]
)
def test_the_trainer_lowers_the_loss_and_its_schedule_the_rate(make, options, tmp_path: Path):
    trainer, optimizer = start(make, tmp_path, max_steps=16, save_strategy="no", **options)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    seen = losses(trainer)
    assert optimizer.steps == 16
    assert optimizer.report()["refreshes"] > 0
    assert seen[-1] < seen[0]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**2)
    idle = [name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])]
    assert idle == []


def test_a_run_resumed_from_the_trainers_checkpoint_goes_on_bit_equal(tmp_path: Path):
    options = {"save_strategy": "steps", "save_steps": 6}
    whole, _ = start(gpt, tmp_path / "whole", max_steps=12, **options)
    whole.train()
    rest, optimizer = start(gpt, tmp_path / "rest", max_steps=12, **options)
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert optimizer.steps == 12
    assert losses(rest)[6:] == losses(whole)[6:]
    for p, q in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(p, q)
