"""From a backward pass to curvature operators."""

from heatbath.curvature.average import update_average as update_average
from heatbath.curvature.capture import Capture as Capture
from heatbath.curvature.capture import Site as Site
from heatbath.curvature.capture import find_sites as find_sites
from heatbath.curvature.factors import FactorSums as FactorSums
from heatbath.curvature.factors import Reduction as Reduction
from heatbath.curvature.factors import Sharing as Sharing
