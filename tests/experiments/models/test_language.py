from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heatbath.experiments.models.language import (
    GPT,
    Block,
    CharacterLSTM,
    bits_per_character,
    next_character_loss,
    perplexity,
)

pytestmark = pytest.mark.usefixtures("seeded_doubles")


def gpt() -> GPT:
    return GPT(11, 9, width=8, heads=2, depth=2)


def test_a_block_is_torchs_pre_norm_encoder_layer_with_a_causal_mask() -> None:
    block, x = Block(8, 2), torch.randn(3, 6, 8)
    layer = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    pairs = {
        "self_attn.in_proj_": block.queries_keys_values,
        "self_attn.out_proj.": block.attended,
        "linear1.": block.wide,
        "linear2.": block.narrow,
        "norm1.": block.before_attention,
        "norm2.": block.before_perceptron,
    }
    state = {name + kind: getattr(module, kind) for name, module in pairs.items() for kind in ("weight", "bias")}
    layer.load_state_dict(state)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    torch.testing.assert_close(block(x), layer(x, src_mask=mask, is_causal=True))


@pytest.mark.parametrize("make", [gpt, lambda: CharacterLSTM(11, embedded=4, width=6)], ids=["gpt", "lstm"])
def test_logits_depend_on_characters_up_to_their_place_only(make) -> None:  # type: ignore[no-untyped-def]
    model, codes = make(), torch.randint(11, (2, 9))
    changed = codes.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model(codes), model(changed)
    assert before.shape == (2, 9, 11)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert bool(((before - after)[:, 5:].abs().amax(2) > 1e-9).all())


def test_a_gpt_starts_near_equal_odds() -> None:
    codes = torch.randint(11, (4, 9))
    assert float(next_character_loss(gpt()(codes), codes).detach()) == pytest.approx(math.log(11), abs=0.1)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads must divide the width, got 3 heads for width 8"):
        GPT(11, 9, width=8, heads=3, depth=1)


def test_measures_of_a_prediction_agree() -> None:
    logits, codes = torch.randn(2, 3, 11), torch.randint(11, (2, 3))
    p = F.softmax(logits, dim=-1)
    chosen = [p[b, t, codes[b, t]].log() for b in range(2) for t in range(3)]
    nats = -torch.stack(chosen).mean()
    torch.testing.assert_close(next_character_loss(logits, codes), nats)
    torch.testing.assert_close(2 ** bits_per_character(logits, codes), nats.exp())
    torch.testing.assert_close(perplexity(logits, codes), nats.exp())
