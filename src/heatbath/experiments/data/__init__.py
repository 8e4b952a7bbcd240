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
from heatbath.experiments.data.digits import digits as digits
from heatbath.experiments.data.mnist import mnist as mnist
