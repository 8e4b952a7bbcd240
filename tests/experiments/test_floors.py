"""Bills beside floors, of real short runs."""

import csv

import pytest
from typer.testing import CliRunner

from heatbath import cli
from heatbath.costs import floors
from heatbath.experiments.comparison import find_records, predict
from heatbath.experiments.floors import distances, floors_csv, floors_figure


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for solver in ("cholesky", "thermodynamic-solve"):
        words = ["train", "digits-mlp", "--steps", "6", "--solver", solver, "--out", str(folder / solver)]
        assert CliRunner().invoke(cli.app, words).exit_code == 0
    return folder


@pytest.mark.slow
def test_a_run_is_set_beside_the_floors_of_its_counted_work(folder):
    records = find_records([folder / "cholesky", folder / "thermodynamic-solve"])
    rows = distances(records)
    for row, record in zip(rows, records, strict=True):
        assert row.bill == predict(record)
        assert row.least == floors(record.work(record.measured[-1]))
        assert row.bill.joules > row.least.irreversible > row.least.reversible
    assert rows[0].least.analog == 0 < rows[1].least.analog
    assert rows[1].cells()[2] == "not stated"  # the preset states no energy
    assert rows[1].cells()[-1].startswith("≥")
    assert len(list(csv.DictReader(floors_csv(rows).splitlines()))) == 2
    assert len(floors_figure(rows).axes[0].get_yticklabels()) == 2


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_figure_and_data(folder, tmp_path):
    words = ["floors", str(folder / "cholesky"), "--out", str(tmp_path / "new" / "floors.svg"), "--temperature", "77"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0
    assert "kT ln 2" in result.stdout
    assert (tmp_path / "new" / "floors.svg").read_text().startswith("<?xml")
    assert "K-FAC, Cholesky" in (tmp_path / "new" / "floors.csv").read_text()


@pytest.mark.slow
def test_impossible_temperatures_and_empty_folders_are_refused(folder, tmp_path):
    result = CliRunner().invoke(cli.app, ["floors", str(folder / "cholesky"), "--temperature", "0"])
    assert (result.exit_code, "temperature must be positive" in result.stderr) == (2, True)
    result = CliRunner().invoke(cli.app, ["floors", str(tmp_path)])
    assert (result.exit_code, "holds no records" in result.stderr) == (2, True)


def test_runs_without_counted_work_are_refused():
    with pytest.raises(ValueError, match="none of the 0 runs has counted work"):
        distances([])
