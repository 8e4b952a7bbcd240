"""Optimizers: one step, many methods."""

from heatbath.optim.anisotropy import Anisotropy as Anisotropy
from heatbath.optim.anisotropy import anisotropy as anisotropy
from heatbath.optim.coverage import Coverage as Coverage
from heatbath.optim.damping import ExactDamping as ExactDamping
from heatbath.optim.damping import FactoredDamping as FactoredDamping
from heatbath.optim.damping import InputDamping as InputDamping
from heatbath.optim.damping import LevenbergMarquardt as LevenbergMarquardt
from heatbath.optim.equilibrium import EquilibriumPropagation as EquilibriumPropagation
from heatbath.optim.joint import JointNaturalGradient as JointNaturalGradient
from heatbath.optim.joint_policy import JointPolicy as JointPolicy
from heatbath.optim.kfac import KFAC as KFAC
from heatbath.optim.natural import NaturalGradient as NaturalGradient
from heatbath.optim.ngd import NGD as NGD
from heatbath.optim.policy import Policy as Policy
from heatbath.optim.precondition import Preconditioner as Preconditioner
from heatbath.optim.precondition import preconditioned as preconditioned
from heatbath.optim.quadratic import QuadraticModel as QuadraticModel
from heatbath.optim.schedule import Interval as Interval
from heatbath.optim.tally import Pass as Pass
from heatbath.optim.tngd import TNGD as TNGD
from heatbath.optim.tngd import Start as Start
from heatbath.optim.tngd import TNGDPolicy as TNGDPolicy
from heatbath.optim.trust import KLClip as KLClip
from heatbath.optim.trust import NormClip as NormClip
from heatbath.optim.trust import Unclipped as Unclipped
