"""The rules the library knows, and which of them treats a module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from heatbath.layers.attention import AttentionRule
from heatbath.layers.base import LayerRule
from heatbath.layers.conv import ConvRule
from heatbath.layers.conv_transpose import ConvTransposeRule
from heatbath.layers.embedding import EmbeddingBagRule, EmbeddingRule
from heatbath.layers.linear import LinearRule
from heatbath.layers.norm import NormRule
from heatbath.layers.recurrent import RecurrentCellRule, RecurrentRule


def default_rules() -> tuple[LayerRule, ...]:
    """A rule for every family the library knows; the first that supports a module treats it."""
    return (
        *(LinearRule(), ConvRule(), ConvTransposeRule(), EmbeddingRule(), EmbeddingBagRule(), NormRule()),
        *(AttentionRule(), RecurrentRule(), RecurrentCellRule()),
    )


def rule_for(module: nn.Module, rules: Sequence[LayerRule]) -> LayerRule | None:
    """The first of `rules` that treats `module` exactly, or None: then its parameters go to the fallback.

    Raises:
        TypeError: something in `rules` is not a rule, a class instead of its instance for example.
    """
    for rule in rules:
        if not isinstance(rule, LayerRule):
            raise TypeError(f"rules must be LayerRule objects, got {rule!r}: pass an instance, as in (LinearRule(),)")
    return next((rule for rule in rules if rule.supports(module)), None)
