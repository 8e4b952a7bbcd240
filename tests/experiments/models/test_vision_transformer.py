from __future__ import annotations

import pytest
import torch
from torch import nn

from heatbath.experiments.models import VisionTransformer
from heatbath.experiments.models.vision_transformer import Attention, sine_positions
from heatbath.recipes import recipes

SMALL = {"size": 16, "patch": 4, "width": 16, "depth": 2, "heads": 2, "hidden": 24, "classes": 5}


def small() -> VisionTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VisionTransformer(**SMALL).double()


def test_vit_s_has_the_published_number_of_parameters_but_for_class_token_and_learned_positions() -> None:
    """22,050,664 in timm's vit_small_patch16_224, of which 384 are the class token and 197 · 384 the positions."""
    with torch.device("meta"):
        model = recipes()["vit-s16-imagenet"].model()
    assert sum(p.numel() for p in model.parameters()) == 22_050_664 - 384 - 197 * 384


def test_attention_is_torchs_multi_head_attention(generator: torch.Generator) -> None:
    with torch.random.fork_rng(devices=[]):
        own, truth = Attention(12, 3).double(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    truth.in_proj_weight.data, truth.in_proj_bias.data = own.inputs.weight.data, own.inputs.bias.data
    truth.out_proj.weight.data, truth.out_proj.bias.data = own.output.weight.data, own.output.bias.data
    x = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(own(x), truth(x, x, x)[0])


def test_the_order_of_patches_matters_by_their_positions_alone(generator: torch.Generator) -> None:
    model = small()
    images = torch.randn(3, 3, 16, 16, generator=generator, dtype=torch.float64)
    turned = torch.cat([images[..., 8:], images[..., :8]], dim=-1)  # whole patches change places
    assert float((model(turned) - model(images)).detach().abs().max()) > 1e-3
    model.positions.zero_()
    torch.testing.assert_close(model(turned), model(images))


def test_positions_have_one_length_and_products_that_depend_on_their_distance_alone() -> None:
    positions = sine_positions(6, 32)
    torch.testing.assert_close(positions.square().sum(1), torch.full((36,), 16.0))  # sin² + cos², 16 times
    grid = positions.reshape(6, 6, 32)
    torch.testing.assert_close((grid[1:, 2:] * grid[:-1, :-2]).sum(-1), (grid[1, 2] @ grid[0, 0]).expand(5, 4))
    assert float(torch.pdist(positions).min()) > 0.5


@pytest.mark.parametrize("wrong", [{"patch": 5}, {"width": 18, "heads": 2}, {"heads": 3}])
def test_sizes_that_do_not_divide_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="needs a size that is a multiple of its patch, and a width that is one of 4 and of"):
        VisionTransformer(**{**SMALL, **wrong})
