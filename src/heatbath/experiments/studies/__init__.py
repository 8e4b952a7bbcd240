"""Studies: questions that are answered by many trials and one page, one file each."""

from heatbath.experiments.studies.complexity import Complexity as Complexity
from heatbath.experiments.studies.complexity import Growth as Growth
from heatbath.experiments.studies.complexity_page import complexity_page as complexity_page
from heatbath.experiments.studies.convergence import Convergence as Convergence
from heatbath.experiments.studies.convergence import Outcome as Outcome
from heatbath.experiments.studies.convergence_page import convergence_page as convergence_page
from heatbath.experiments.studies.crossover import count_layers as count_layers
from heatbath.experiments.studies.design import Budget as Budget
from heatbath.experiments.studies.design import Design as Design
from heatbath.experiments.studies.design_page import design_page as design_page
from heatbath.experiments.studies.page import Page as Page
from heatbath.experiments.studies.runtime import Runtime as Runtime
from heatbath.experiments.studies.runtime_page import runtime_page as runtime_page
