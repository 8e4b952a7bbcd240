"""Bills add up by part, and what is not stated never becomes a number."""

from __future__ import annotations

import json

import pytest

from heatbath.costs import PARTS, Bill, with_unit


def test_bills_add_up_by_part():
    total = Bill({"upload": 1.0, "settle": 2.0}, {"digital": 3.0}) + Bill({"settle": 4.0, "read": 8.0}, {"digital": 16.0})
    assert dict(total.seconds_by_part) == {"upload": 1.0, "settle": 6.0, "read": 8.0}
    assert total.seconds == 15.0
    assert total.joules == 19.0
    assert total.unstated == ()


def test_a_bill_times_three_is_the_bill_three_times():
    bill = Bill({"upload": 1.5}, {"upload": 0.25}, unstated_seconds=frozenset({"convert"}))
    assert 3 * bill == bill + bill + bill
    assert bill * 3 == 3 * bill


def test_unstated_parts_survive_addition_and_are_named():
    total = Bill({"settle": 1.0}, unstated_joules=frozenset({"settle"})) + Bill(unstated_seconds=frozenset({"convert"}))
    assert total.unstated == ("seconds of convert", "joules of settle")
    assert total.seconds == 1.0


def test_rows_say_not_stated_and_at_least():
    bill = Bill(
        {"settle": 0.077, "upload": 755e-6}, unstated_seconds=frozenset({"convert"}), unstated_joules=frozenset({"settle"})
    )
    rows = {part: (seconds, joules) for part, seconds, joules in bill.rows()}
    assert list(rows) == ["upload", "convert", "settle", "total"]
    assert rows["upload"] == ("755 µs", "0 J")
    assert rows["convert"][0] == "not stated"
    assert rows["total"] == ("at least 77.8 ms", "not stated")


def test_a_bill_survives_a_record_file():
    bill = Bill({"upload": 0.1}, {"digital": 7.0}, frozenset({"convert"}), frozenset({"settle", "read"}))
    assert Bill.from_json(json.loads(json.dumps(bill.to_json()))) == bill


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match=r"has the parts digital, upload, .*; got coffee"):
        Bill({"coffee": 1.0})
    with pytest.raises(ValueError, match="got tea"):
        Bill(unstated_joules=frozenset({"tea"}))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1 s"), (999.6, "1 ks"), (0.0009996, "1 ms"), (2.87e-21, "2.87 zs"), (1e-40, "1e-10 qs"), (-0.002, "-2 ms")],
)
def test_with_unit_keeps_three_digits(value, text):
    assert with_unit(value, "s") == text


def test_every_part_appears_in_rows_in_order():
    assert [row[0] for row in Bill(dict.fromkeys(reversed(PARTS), 1.0)).rows()] == [*PARTS, "total"]
