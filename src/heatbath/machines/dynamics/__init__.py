"""The physics: linear circuits under noise, in units of full scale and τ. It knows no bit, no specification, no volt."""

from heatbath.machines.dynamics.base import Clock as Clock
from heatbath.machines.dynamics.base import Derivation as Derivation
from heatbath.machines.dynamics.base import Dynamics as Dynamics
from heatbath.machines.dynamics.base import Excitation as Excitation
from heatbath.machines.dynamics.base import average as average
from heatbath.machines.dynamics.base import transition as transition
from heatbath.machines.dynamics.cells import Cells as Cells
from heatbath.machines.dynamics.closed_loop import ClosedLoop as ClosedLoop
from heatbath.machines.dynamics.correlated import CorrelatedNoise as CorrelatedNoise
from heatbath.machines.dynamics.exact import ExactDynamics as ExactDynamics
from heatbath.machines.dynamics.settled import SettledApproximation as SettledApproximation
from heatbath.machines.dynamics.transition import GaussianTransition as GaussianTransition
