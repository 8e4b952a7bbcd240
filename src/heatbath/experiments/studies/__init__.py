"""Studies: questions that are answered by many trials and one page, one file each."""

from heatbath.experiments.studies.batch_size import BatchSize as BatchSize
from heatbath.experiments.studies.batch_size import Contender as Contender
from heatbath.experiments.studies.batch_size_page import batch_size_page as batch_size_page
from heatbath.experiments.studies.bench import Bench as Bench
from heatbath.experiments.studies.bench import Outcome as Outcome
from heatbath.experiments.studies.bench import Setting as Setting
from heatbath.experiments.studies.complexity import Complexity as Complexity
from heatbath.experiments.studies.complexity import Growth as Growth
from heatbath.experiments.studies.complexity_page import complexity_page as complexity_page
from heatbath.experiments.studies.convergence import Convergence as Convergence
from heatbath.experiments.studies.convergence_page import convergence_page as convergence_page
from heatbath.experiments.studies.crossover import count_layers as count_layers
from heatbath.experiments.studies.grid import Grid as Grid
from heatbath.experiments.studies.page import Page as Page
from heatbath.experiments.studies.quantization import Quantization as Quantization
from heatbath.experiments.studies.quantization_page import quantization_page as quantization_page
from heatbath.experiments.studies.runtime import Runtime as Runtime
from heatbath.experiments.studies.runtime_page import runtime_page as runtime_page
