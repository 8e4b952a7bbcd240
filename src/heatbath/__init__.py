"""Second-order training of PyTorch models on an emulated thermodynamic computer.

Names are imported from their rooms when first used, so that `import heatbath` and `heatbath --help` are quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heatbath.costs import Bill as Bill
    from heatbath.costs import price as price
    from heatbath.curvature import Bernoulli as Bernoulli
    from heatbath.curvature import Categorical as Categorical
    from heatbath.curvature import EmpiricalFisher as EmpiricalFisher
    from heatbath.curvature import ExactFisher as ExactFisher
    from heatbath.curvature import Gaussian as Gaussian
    from heatbath.curvature import InputOnly as InputOnly
    from heatbath.curvature import Poisson as Poisson
    from heatbath.curvature import Reduction as Reduction
    from heatbath.curvature import SampledFisher as SampledFisher
    from heatbath.curvature import Sharing as Sharing
    from heatbath.machines import Machine as Machine
    from heatbath.machines import MachineSpec as MachineSpec
    from heatbath.machines import Schedule as Schedule
    from heatbath.machines import load_machine as load_machine
    from heatbath.machines import presets as presets
    from heatbath.machines import with_bits as with_bits
    from heatbath.operators import BlockDiagonal as BlockDiagonal
    from heatbath.operators import Dense as Dense
    from heatbath.operators import Diagonal as Diagonal
    from heatbath.operators import EigenCorrected as EigenCorrected
    from heatbath.operators import Gram as Gram
    from heatbath.operators import Kronecker as Kronecker
    from heatbath.optim import KFAC as KFAC
    from heatbath.optim import NGD as NGD
    from heatbath.optim import TNGD as TNGD
    from heatbath.optim import ExactDamping as ExactDamping
    from heatbath.optim import FactoredDamping as FactoredDamping
    from heatbath.optim import InputDamping as InputDamping
    from heatbath.optim import JointPolicy as JointPolicy
    from heatbath.optim import KLClip as KLClip
    from heatbath.optim import LevenbergMarquardt as LevenbergMarquardt
    from heatbath.optim import MatchedRMS as MatchedRMS
    from heatbath.optim import NormClip as NormClip
    from heatbath.optim import Policy as Policy
    from heatbath.optim import QuadraticModel as QuadraticModel
    from heatbath.optim import RelativeDamping as RelativeDamping
    from heatbath.optim import Start as Start
    from heatbath.optim import TNGDPolicy as TNGDPolicy
    from heatbath.optim import Unclipped as Unclipped
    from heatbath.optim import preconditioned as preconditioned
    from heatbath.prediction import predict as predict
    from heatbath.solvers import Averaged as Averaged
    from heatbath.solvers import Blocked as Blocked
    from heatbath.solvers import Cholesky as Cholesky
    from heatbath.solvers import ConjugateGradient as ConjugateGradient
    from heatbath.solvers import CosineVectors as CosineVectors
    from heatbath.solvers import Crossbar as Crossbar
    from heatbath.solvers import Eigen as Eigen
    from heatbath.solvers import Factorwise as Factorwise
    from heatbath.solvers import Fluctuations as Fluctuations
    from heatbath.solvers import Full as Full
    from heatbath.solvers import Guarded as Guarded
    from heatbath.solvers import NewtonSchulz as NewtonSchulz
    from heatbath.solvers import Outcome as Outcome
    from heatbath.solvers import Refined as Refined
    from heatbath.solvers import SmallSide as SmallSide
    from heatbath.solvers import Solution as Solution
    from heatbath.solvers import ThermodynamicInverse as ThermodynamicInverse
    from heatbath.solvers import ThermodynamicSolve as ThermodynamicSolve
    from heatbath.solvers import UnitVectors as UnitVectors
    from heatbath.solvers import linalg as linalg
    from heatbath.work import Work as Work

__version__ = "0.1.0"

_ROOMS = {
    "costs": ("Bill", "price"),
    "curvature": (
        "SampledFisher",
        "Poisson",
        "InputOnly",
        "Gaussian",
        "ExactFisher",
        "EmpiricalFisher",
        "Categorical",
        "Bernoulli",
        "Reduction",
        "Sharing",
    ),
    "machines": ("Machine", "MachineSpec", "Schedule", "load_machine", "presets", "with_bits"),
    "operators": ("EigenCorrected", "Gram", "BlockDiagonal", "Dense", "Diagonal", "Kronecker"),
    "optim": (
        "preconditioned",
        "NGD",
        "TNGD",
        "JointPolicy",
        "Start",
        "TNGDPolicy",
        "QuadraticModel",
        "MatchedRMS",
        "RelativeDamping",
        "NormClip",
        "LevenbergMarquardt",
        "InputDamping",
        "KFAC",
        "ExactDamping",
        "FactoredDamping",
        "KLClip",
        "Policy",
        "Unclipped",
    ),
    "prediction": ("predict",),
    "solvers": (
        "Averaged",
        "Full",
        "SmallSide",
        "Blocked",
        "Cholesky",
        "ConjugateGradient",
        "Crossbar",
        "Eigen",
        "Factorwise",
        "Fluctuations",
        "Guarded",
        "NewtonSchulz",
        "Outcome",
        "Refined",
        "Solution",
        "ThermodynamicInverse",
        "ThermodynamicSolve",
        "CosineVectors",
        "UnitVectors",
        "linalg",
    ),
    "work": ("Work",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> Any:  # Any: whatever the name stands for
    """Import a public name from its room."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'heatbath' has no attribute {name!r}")
    return getattr(import_module(f"heatbath.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    """Public names, for completion."""
    return __all__
