"""Data sets: one file per set, each ending in a `Source`."""

from heatbath.experiments.data.base import Dataset as Dataset
from heatbath.experiments.data.base import Remote as Remote
from heatbath.experiments.data.base import Source as Source
from heatbath.experiments.data.base import Split as Split
from heatbath.experiments.data.base import Subset as Subset
from heatbath.experiments.data.base import Tensors as Tensors
from heatbath.experiments.data.base import held_out as held_out
from heatbath.experiments.data.base import locate as locate
from heatbath.experiments.data.base import reconstruction as reconstruction
from heatbath.experiments.data.cifar10 import cifar10 as cifar10
from heatbath.experiments.data.curves import curves as curves
from heatbath.experiments.data.digits import digits as digits
from heatbath.experiments.data.mnist import mnist as mnist
from heatbath.experiments.data.olivetti import faces as faces
from heatbath.experiments.data.shapes import imagenet_shapes as imagenet_shapes
