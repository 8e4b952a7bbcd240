"""From passes of a model to rows of its layers: the record, and the hooks, eager and compiled, that feed it."""

from heatbath.curvature.capture.hooks import attach_hooks as attach_hooks
from heatbath.curvature.capture.recorder import Capture as Capture
from heatbath.curvature.capture.sites import Site as Site
from heatbath.curvature.capture.sites import find_sites as find_sites
