"""The laws of `tests/laws.py` and `tests/solver_laws.py`, applied to the tables of `tests/zoo.py`."""

from __future__ import annotations

import pytest

from tests import laws, solver_laws
from tests.zoo import LAYERS, MACHINES, OPTIMIZERS, SOLVERS


def every(table, keep=lambda row: True):
    rows = {name: row for name, row in table.items() if keep(row)}
    return pytest.mark.parametrize("row", rows.values(), ids=rows.keys())


# --- solvers ---------------------------------------------------------------------------------------------------------


@every(SOLVERS)
@pytest.mark.parametrize("stack,batch", [((), ()), ((2,), ()), ((2,), (3,)), ((), (2, 3)), ((2, 2), (3,))], ids=str)
def test_solvers_solve(row, stack, batch):
    solver_laws.solver_solves(row, stack, batch)


@every(SOLVERS)
def test_solvers_keep_float32(row):
    solver_laws.solver_in_float32(row)


@every(SOLVERS)
def test_a_stack_is_a_loop(row):
    solver_laws.solver_treats_a_stack_member_by_member(row)


@every(SOLVERS, lambda row: row.linear)
def test_solving_is_linear(row):
    solver_laws.solver_is_linear(row)


@every(SOLVERS)
def test_solvers_repeat_with_their_generator(row):
    solver_laws.solver_repeats_with_its_generator(row)


@every(SOLVERS)
def test_solvers_leave_their_inputs_alone(row):
    solver_laws.solver_leaves_its_inputs_alone(row)


@every(SOLVERS)
def test_solver_states_survive_a_checkpoint(row):
    solver_laws.solver_state_survives_a_checkpoint(row)


@every(SOLVERS)
def test_solver_states_mix_member_by_member(row):
    solver_laws.solver_state_can_be_mixed_member_by_member(row)


@every(SOLVERS)
def test_a_previous_state_is_a_start_only(row):
    solver_laws.solver_takes_a_previous_state_as_a_start_only(row)


@every(SOLVERS)
def test_work_follows_from_shapes(row):
    solver_laws.solver_counts_work_from_shapes_only(row)


@every(SOLVERS)
def test_an_indefinite_member_is_reported(row):
    solver_laws.solver_reports_an_indefinite_member(row)


@every(SOLVERS)
def test_a_member_that_is_not_finite_is_reported(row):
    solver_laws.solver_reports_a_member_that_is_not_finite(row)


@every(MACHINES)
def test_every_machine_solves_small_systems(row):
    solver_laws.machine_solves(row)


# --- optimizers ------------------------------------------------------------------------------------------------------


@every(OPTIMIZERS)
def test_optimizers_repeat(row):
    laws.optimizer_repeats(row)


@every(OPTIMIZERS)
@pytest.mark.parametrize("split", [1, 4])
def test_optimizers_resume_bit_equal_in_mid_interval(row, split):
    laws.optimizer_resumes_in_mid_interval(row, split)


@every(OPTIMIZERS, lambda row: row.exact)
@pytest.mark.parametrize("parts", [2, 8])
def test_micro_batches_are_one_batch(row, parts):
    laws.optimizer_takes_micro_batches(row, parts)


@every(OPTIMIZERS, lambda row: row.exact)
def test_duplicates_change_nothing(row):
    laws.optimizer_ignores_duplicates(row)


@every(OPTIMIZERS, lambda row: row.exact)
def test_permuting_units_commutes_with_training(row):
    laws.optimizer_commutes_with_permutations(row)


@every(OPTIMIZERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped(row, bad):
    laws.optimizer_skips_a_step_that_is_not_finite(row, bad)


@every(OPTIMIZERS)
def test_optimizers_learn(row):
    laws.optimizer_learns(row)


# --- layers ----------------------------------------------------------------------------------------------------------


@every(LAYERS)
def test_layers_are_wholly_trained(row):
    laws.layer_is_wholly_trained(row)


@every(LAYERS)
def test_duplicated_examples_change_no_layer(row):
    laws.layer_ignores_duplicates(row)


@every(LAYERS, lambda row: row.per_example)
def test_micro_batches_change_no_layer(row):
    laws.layer_takes_micro_batches(row)


@every(LAYERS)
def test_capture_leaves_gradients_alone(row):
    laws.layer_capture_leaves_gradients_alone(row)


@every(LAYERS)
def test_watched_layers_can_be_copied(row):
    laws.layer_survives_a_copy(row)
