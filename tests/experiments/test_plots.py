from __future__ import annotations

import csv
import io
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from heatbath.experiments import Record
from heatbath.experiments.plots import Axis, band_csv, band_curves, curves, curves_csv, inline_svg, save_figure, trailing_mean
from tests.experiments import tasks

LOSS = Axis("loss", label="training loss", log=True)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return [tasks.train(tmp_path_factory.mktemp(name), name, steps=150, checkpoint_every=0) for name in ("adamw", "kfac")]


def test_axes_are_labelled_with_units_and_runs_are_named(records: list[Record]) -> None:
    figure = curves(records, Axis("test accuracy", against="seconds"))
    (axes,) = figure.axes
    assert axes.get_xlabel() == "training time here (s)"
    assert axes.get_ylabel() == "test accuracy"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["AdamW", "K-FAC, Cholesky", "target 0.7"]


def test_a_line_goes_through_the_recorded_values(records: list[Record]) -> None:
    (axes,) = curves(records, Axis("test accuracy")).axes
    steps, _, values = records[0].metric("test accuracy")
    line = axes.get_lines()[0]
    assert list(line.get_xdata()) == steps
    assert list(line.get_ydata()) == values


def test_long_curves_are_drawn_raw_and_smoothed(records: list[Record]) -> None:
    (axes,) = curves(records, LOSS).axes
    assert len(axes.get_lines()) == 4
    assert axes.get_yscale() == "log"


def test_an_inline_figure_is_one_element_that_takes_the_pages_colour(records: list[Record]) -> None:
    text = inline_svg(curves(records, LOSS), name="one")
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert "currentColor" in text
    assert "width" not in root.attrib
    assert root.attrib["viewBox"]
    assert "training loss" in text


def test_identifiers_of_two_figures_differ_and_references_stay_inside(records: list[Record]) -> None:
    identifiers = []
    for name in ("one", "two"):
        root = ElementTree.fromstring(inline_svg(curves(records, LOSS), name=name))
        identifiers.append({element.attrib["id"] for element in root.iter() if "id" in element.attrib})
        links = [value for e in root.iter() for key, value in e.attrib.items() if key.endswith("href")]
        assert links
        assert all(link[1:] in identifiers[-1] for link in links)
    assert not identifiers[0] & identifiers[1]


def test_the_data_of_a_figure_are_the_recorded_ones(records: list[Record]) -> None:
    rows = list(csv.DictReader(io.StringIO(curves_csv(records, LOSS))))
    assert {row["run"] for row in rows} == {"AdamW", "K-FAC, Cholesky"}
    first = [float(row["loss"]) for row in rows if row["run"] == "AdamW"]
    assert first == pytest.approx(records[0].metric("loss")[2], rel=1e-6)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_figure_can_be_a_file_of_its_own(records: list[Record], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"figure.{suffix}"
    save_figure(curves(records, LOSS), path)
    assert path.read_bytes()[:5] == {"svg": b"<?xml", "png": b"\x89PNG\r"}[suffix]


def test_a_trailing_mean_skips_what_is_no_number() -> None:
    means = trailing_mean([math.nan, 1.0, 3.0, math.inf, 5.0], 2)
    assert math.isnan(means[0])
    assert means[1:] == [1.0, 2.0, 3.0, 5.0]


def test_a_group_of_runs_is_its_mean_in_a_band_at_the_steps_they_share() -> None:
    def run(values: dict[int, float]) -> Record:
        rows = [{"step": step, "loss": value, "seconds": 0.0} for step, value in values.items()]
        return Record(Path("x"), {"target": {"metric": "m", "value": 1.0, "higher": True}}, rows)

    groups = [("pair", [run({0: 1.0, 1: 3.0, 2: 9.0}), run({0: 3.0, 1: 4.0})]), ("single", [run({0: 5.0})])]
    rows = list(csv.reader(io.StringIO(band_csv(groups, Axis("loss")))))
    assert rows == [
        ["run", "step", "lowest", "mean loss", "highest"],
        ["pair", "0", "1", "2", "3"],
        ["pair", "1", "3", "3.5", "4"],
        ["single", "0", "5", "5", "5"],
    ]
    axes = band_curves(groups, Axis("loss", label="training loss", log=True)).axes[0]
    assert axes.get_xlabel() == "training step"
    assert (axes.get_ylabel(), axes.get_yscale()) == ("training loss", "log")
    assert [line.get_label() for line in axes.get_lines()] == ["pair", "single"]
    assert list(axes.get_lines()[0].get_ydata()) == [2.0, 3.5]


@pytest.mark.parametrize("end,lowest", [(0.96, 0.82), (0.4, 0.1)])
def test_the_far_beginning_is_left_out_only_where_every_run_comes_near(end: float, lowest: float) -> None:
    rows = [{"step": k, "loss": 1.0, "seconds": 0.0, "metrics": {"m": value}} for k, value in enumerate([0.1, end])]
    setting = {"choice": {}, "dataset": {"name": "d"}, "batch_size": 1, "steps": 2, "seed": 0}
    record = Record(Path("x"), {**setting, "target": {"metric": "m", "value": 0.97, "higher": True}}, rows)
    (axes,) = curves([record], Axis("m")).axes
    low, high = axes.get_ylim()
    assert low == pytest.approx(lowest) if lowest > 0.5 else low < lowest
    assert high > 0.97


def test_seeds_of_one_setting_are_one_curve_in_a_band_with_all_data_in_the_file(records: list[Record]) -> None:
    again = Record(records[0].path, {**records[0].header, "seed": 7}, records[0].rows)
    (axes,) = curves([records[0], again, records[1]], Axis("test accuracy")).axes
    assert [line.get_label() for line in axes.get_lines()][:2] == ["AdamW", "K-FAC, Cholesky"]
    assert len(axes.collections) == 1
    rows = list(csv.DictReader(io.StringIO(curves_csv([records[0], again], Axis("test accuracy")))))
    assert {row["seed"] for row in rows} == {str(records[0].header["seed"]), "7"}


def test_a_figure_that_is_drawn_again_is_the_same_file(tmp_path: Path) -> None:
    figure = Figure()
    figure.add_subplot().plot([0, 1], [1, 0])
    for name in ("a.svg", "b.svg"):
        save_figure(figure, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "<dc:date>" not in text
