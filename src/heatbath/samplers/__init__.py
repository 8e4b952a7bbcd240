"""The machine at work beyond training: quadratic programs, samples, posteriors."""

from heatbath.samplers.max_cut import Cut as Cut
from heatbath.samplers.max_cut import cut_value as cut_value
from heatbath.samplers.max_cut import max_cut as max_cut
from heatbath.samplers.quadratic_program import Optimum as Optimum
from heatbath.samplers.quadratic_program import QuadraticProgram as QuadraticProgram
from heatbath.samplers.quadratic_program import Status as Status
from heatbath.samplers.quadratic_program import solve_quadratic_program as solve_quadratic_program
