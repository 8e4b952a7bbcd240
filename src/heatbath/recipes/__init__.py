"""One file per task: functions that return an experiment."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from heatbath.experiments import Experiment
from heatbath.recipes.char_gpt import char_gpt as char_gpt
from heatbath.recipes.char_lstm import char_lstm as char_lstm
from heatbath.recipes.cifar_cnn import cifar_cnn as cifar_cnn
from heatbath.recipes.cifar_vit import cifar_vit as cifar_vit
from heatbath.recipes.cora_gcn import cora_gcn as cora_gcn
from heatbath.recipes.curves_autoencoder import curves_autoencoder as curves_autoencoder
from heatbath.recipes.digits_cnn import digits_cnn as digits_cnn
from heatbath.recipes.digits_mlp import digits_mlp as digits_mlp
from heatbath.recipes.digits_small import digits_small as digits_small
from heatbath.recipes.faces_autoencoder import faces_autoencoder as faces_autoencoder
from heatbath.recipes.mnist_autoencoder import mnist_autoencoder as mnist_autoencoder
from heatbath.recipes.molecules_gnn import molecules_gnn as molecules_gnn
from heatbath.recipes.ogbg_gnn import ogbg_gnn as ogbg_gnn
from heatbath.recipes.vit_s16_imagenet import vit_s16_imagenet as vit_s16_imagenet

RECIPES: tuple[Callable[[], Experiment], ...] = (
    digits_mlp,
    digits_cnn,
    digits_small,
    mnist_autoencoder,
    curves_autoencoder,
    faces_autoencoder,
    cifar_cnn,
    cifar_vit,
    char_gpt,
    char_lstm,
    molecules_gnn,
    cora_gcn,
    vit_s16_imagenet,
    ogbg_gnn,
)


def recipe_functions() -> Mapping[str, Callable[[], Experiment]]:
    """The functions that return the recipes, by name: what another process can import."""
    return MappingProxyType({recipe().name: recipe for recipe in RECIPES})


def recipes() -> Mapping[str, Experiment]:
    """All recipes by name; nothing is loaded until one is run.

    >>> recipes()["digits-mlp"].source.name
    'digits'
    """
    return MappingProxyType({experiment.name: experiment for experiment in (recipe() for recipe in RECIPES)})
