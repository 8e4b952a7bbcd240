"""Operator and right-hand side to solution."""

from heatbath.solvers.base import Outcome as Outcome
from heatbath.solvers.base import Solution as Solution
from heatbath.solvers.base import Solver as Solver
from heatbath.solvers.base import usable as usable
from heatbath.solvers.cholesky import Cholesky as Cholesky
from heatbath.solvers.eigen import Eigen as Eigen
from heatbath.solvers.factorwise import Factorwise as Factorwise
from heatbath.solvers.guarded import Guarded as Guarded
from heatbath.solvers.thermodynamic import Fluctuations as Fluctuations
from heatbath.solvers.thermodynamic import ThermodynamicInverse as ThermodynamicInverse
from heatbath.solvers.thermodynamic import ThermodynamicSolve as ThermodynamicSolve
from heatbath.solvers.thermodynamic import UnitVectors as UnitVectors
from heatbath.solvers.thermodynamic import default_schedule as default_schedule
