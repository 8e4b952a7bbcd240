"""The machine at work beyond training: quadratic programs, samples, posteriors."""

from heatbath.samplers.diagnostics import Diagnostics as Diagnostics
from heatbath.samplers.diagnostics import diagnose as diagnose
from heatbath.samplers.gaussian import Draws as Draws
from heatbath.samplers.gaussian import Gaussian as Gaussian
from heatbath.samplers.gaussian import linear_regression as linear_regression
from heatbath.samplers.gaussian import sample_gaussian as sample_gaussian
from heatbath.samplers.gaussian import slowest_relaxation as slowest_relaxation
from heatbath.samplers.langevin import LogisticRegression as LogisticRegression
from heatbath.samplers.langevin import langevin as langevin
from heatbath.samplers.laplace import Laplace as Laplace
from heatbath.samplers.laplace import PosteriorBlock as PosteriorBlock
from heatbath.samplers.laplace import WeightDraws as WeightDraws
from heatbath.samplers.laplace import fit_laplace as fit_laplace
from heatbath.samplers.laplace import sample_weights as sample_weights
from heatbath.samplers.laplace_machine import sample_weights_on as sample_weights_on
from heatbath.samplers.max_cut import Cut as Cut
from heatbath.samplers.max_cut import cut_value as cut_value
from heatbath.samplers.max_cut import max_cut as max_cut
from heatbath.samplers.predictive import OutputPosterior as OutputPosterior
from heatbath.samplers.predictive import most_predictive as most_predictive
from heatbath.samplers.predictive import predict_linearized as predict_linearized
from heatbath.samplers.predictive import predict_sampled as predict_sampled
from heatbath.samplers.quadratic_program import Optimum as Optimum
from heatbath.samplers.quadratic_program import QuadraticProgram as QuadraticProgram
from heatbath.samplers.quadratic_program import Status as Status
from heatbath.samplers.quadratic_program import solve_quadratic_program as solve_quadratic_program
