from __future__ import annotations

import csv
import io

import pytest

from heatbath.costs import Bill
from heatbath.experiments.bill_split import bill_pictures, bill_tables

BILLS = [
    ("digital", Bill({"digital": 2e-3}, {"digital": 1.0})),
    (
        "analog",
        Bill({"digital": 1e-3, "settle": 5e-3}, {"digital": 0.5}, frozenset({"convert", "settle"}), frozenset({"settle"})),
    ),
]


def test_parts_stand_side_by_side_and_what_is_not_stated_stays_so() -> None:
    time, energy = bill_tables(BILLS).values()
    assert time.head == energy.head == ["optimizer", "digital", "convert", "settle", "total"]
    assert time.rows == [["digital", "2 ms", "–", "–", "2 ms"], ["analog", "1 ms", "not stated", "≥ 5 ms", "≥ 6 ms"]]
    assert energy.rows == [["digital", "1 J", "–", "–", "1 J"], ["analog", "500 mJ", "–", "not stated", "≥ 500 mJ"]]


def test_the_figure_holds_each_part_and_the_total_and_its_data() -> None:
    time, energy = bill_pictures(BILLS, command="c")
    (axes,) = time.figure.axes
    assert axes.get_xlabel() == "predicted time of one step (s)"
    assert {line.get_label(): list(line.get_xdata()) for line in axes.get_lines() if line.get_label()[0] != "_"} == {
        "digital": [2e-3, 1e-3],
        "settle": [5e-3],
        "total": [2e-3],
    }
    rows = list(csv.DictReader(io.StringIO(time.data)))
    values = {(row["run"], row["part"]): row["time of one step (s)"] for row in rows}
    assert float(values["analog", "settle"]) == pytest.approx(5e-3)
    assert values["analog", "convert"] == ""
    assert energy.figure.axes[0].get_xlabel() == "predicted energy of one step (J)"


def test_a_quantity_of_which_nothing_is_known_has_no_figure() -> None:
    bills = [("a", Bill({"digital": 1.0}, unstated_joules=frozenset({"digital"})))]
    assert [picture.name for picture in bill_pictures(bills, command="c")] == ["predicted-time"]
