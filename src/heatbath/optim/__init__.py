"""Optimizers: one step, many methods."""

from heatbath.optim.coverage import Coverage as Coverage
from heatbath.optim.damping import ExactDamping as ExactDamping
from heatbath.optim.damping import FactoredDamping as FactoredDamping
from heatbath.optim.kfac import KFAC as KFAC
from heatbath.optim.natural import NaturalGradient as NaturalGradient
from heatbath.optim.policy import Policy as Policy
from heatbath.optim.schedule import Interval as Interval
from heatbath.optim.trust import KLClip as KLClip
from heatbath.optim.trust import Unclipped as Unclipped
