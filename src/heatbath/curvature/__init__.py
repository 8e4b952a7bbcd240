"""From a backward pass to curvature operators."""

from heatbath.curvature.average import average_weights as average_weights
from heatbath.curvature.average import update_average as update_average
from heatbath.curvature.capture import Capture as Capture
from heatbath.curvature.distributed import is_parallel as is_parallel
from heatbath.curvature.distributed import join_processes as join_processes
from heatbath.curvature.factors import Counts as Counts
from heatbath.curvature.factors import FactorSums as FactorSums
from heatbath.curvature.factors import Form as Form
from heatbath.curvature.fisher import EmpiricalFisher as EmpiricalFisher
from heatbath.curvature.fisher import ExactFisher as ExactFisher
from heatbath.curvature.fisher import Fisher as Fisher
from heatbath.curvature.fisher import InputOnly as InputOnly
from heatbath.curvature.fisher import SampledFisher as SampledFisher
from heatbath.curvature.likelihoods import Bernoulli as Bernoulli
from heatbath.curvature.likelihoods import Categorical as Categorical
from heatbath.curvature.likelihoods import Gaussian as Gaussian
from heatbath.curvature.likelihoods import Likelihood as Likelihood
from heatbath.curvature.likelihoods import Observation as Observation
from heatbath.curvature.likelihoods import Poisson as Poisson
from heatbath.curvature.reduction import Reduction as Reduction
from heatbath.curvature.reduction import Sharing as Sharing
from heatbath.curvature.sites import Site as Site
from heatbath.curvature.sites import find_sites as find_sites
from heatbath.curvature.squares import SquareSums as SquareSums
