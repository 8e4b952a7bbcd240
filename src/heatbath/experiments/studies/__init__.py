"""Studies: questions that are answered by many trials and one page, one file each."""

from heatbath.experiments.studies.convergence import Convergence as Convergence
from heatbath.experiments.studies.convergence import Outcome as Outcome
