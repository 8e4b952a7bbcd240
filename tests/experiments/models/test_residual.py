from __future__ import annotations

import pytest
import torch
from torch import nn

from heatbath.experiments.models import residual_cnn
from heatbath.experiments.models.residual import ResidualBlock


def test_one_block_of_three_widths_is_eight_layers_deep_and_halves_the_image_twice() -> None:
    model = residual_cnn()
    on_path = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    assert len(on_path) == 8
    assert model[:6](torch.zeros(2, 3, 32, 32)).shape == (2, 64, 8, 8)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_blocks_after_the_first_of_a_stage_keep_their_shape_and_have_no_weights_on_the_shortcut() -> None:
    blocks = [m for m in residual_cnn((8, 16), blocks=2) if isinstance(m, ResidualBlock)]
    assert [isinstance(b.shortcut, nn.Identity) for b in blocks] == [True, True, False, True]


def test_an_image_is_treated_alike_whatever_else_is_in_its_batch(generator: torch.Generator) -> None:
    with torch.random.fork_rng(devices=[]):
        model = residual_cnn((8, 16)).double()
    images = torch.randn(4, 3, 16, 16, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(torch.cat([model(image) for image in images.split(1)]), model(images))


@pytest.mark.parametrize(("widths", "blocks"), [((), 1), ((16,), 0), ((16, 20), 1)])
def test_widths_that_cannot_be_normalized_in_groups_and_empty_stages_are_refused(widths: tuple[int, ...], blocks: int) -> None:
    with pytest.raises(ValueError, match="needs widths that are multiples of 8 and at least one block a stage, got"):
        residual_cnn(widths, blocks=blocks)
