"""The networks that recipes train: one file per family.

`language` and `graph` hold the losses and measures of their tasks too; recipes import from them directly.
"""

from heatbath.experiments.models.feedforward import autoencoder as autoencoder
from heatbath.experiments.models.feedforward import mlp as mlp
from heatbath.experiments.models.feedforward import small_cnn as small_cnn
from heatbath.experiments.models.residual import residual_cnn as residual_cnn
from heatbath.experiments.models.vision_transformer import VisionTransformer as VisionTransformer
