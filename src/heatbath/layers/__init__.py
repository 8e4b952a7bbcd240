"""How each kind of layer becomes outer products, and how its gradient is packed: one file per family."""

from heatbath.layers.affine import Affine as Affine
from heatbath.layers.affine import AffineRule as AffineRule
from heatbath.layers.attention import AttentionRule as AttentionRule
from heatbath.layers.base import Block as Block
from heatbath.layers.base import Call as Call
from heatbath.layers.base import LayerRule as LayerRule
from heatbath.layers.base import OneHot as OneHot
from heatbath.layers.base import Rows as Rows
from heatbath.layers.conv import ConvRule as ConvRule
from heatbath.layers.conv_transpose import ConvTransposeRule as ConvTransposeRule
from heatbath.layers.derivative import product_rows as product_rows
from heatbath.layers.derivative import trains_weight as trains_weight
from heatbath.layers.embedding import EmbeddingBagRule as EmbeddingBagRule
from heatbath.layers.embedding import EmbeddingRule as EmbeddingRule
from heatbath.layers.linear import LinearRule as LinearRule
from heatbath.layers.norm import NormRule as NormRule
from heatbath.layers.recurrent import RecurrentCellRule as RecurrentCellRule
from heatbath.layers.recurrent import RecurrentRule as RecurrentRule
from heatbath.layers.replay import RandomState as RandomState
from heatbath.layers.replay import without_autocast as without_autocast
from heatbath.layers.rules import default_rules as default_rules
from heatbath.layers.rules import rule_for as rule_for
from heatbath.layers.symmetric import symmetric_layers as symmetric_layers
