from __future__ import annotations

from heatbath.experiments.faults import faults_table
from heatbath.experiments.groups import Group
from heatbath.experiments.records import Record
from tests.experiments.test_groups import record


def reporting(seed: int, ended: str, **report: float) -> Record:
    one = record(seed, ended=ended)
    named = {name.replace("__", "."): value for name, value in report.items()}
    return Record(one.path, one.header, [*one.rows, {"step": 6, "loss": 1.0, "seconds": 1.0, "optimizer": named}], one.events)


def test_outcomes_clips_and_ends_are_summed_over_seeds() -> None:
    runs = [
        reporting(0, "finished", prepare__solved=80.0, prepare__redamped=4.0, skipped_steps=1.0, prepare__clipped=7.0),
        reporting(1, "diverged", prepare__solved=70.0, prepare__fell_back=2.0, solve__late=3.0, skipped_steps=0.0),
        reporting(2, "finished", clipped_share=0.3, prepare__solved=1.0),
    ]
    table = faults_table([Group("a", runs), Group("b", [record(0)])])
    head, row = table.head, table.rows[0]
    assert dict(zip(head, row, strict=True)) == {
        "optimizer": "a",
        "runs": "2 finished, 1 diverged",
        "matrices prepared": "157: 4 damped again, 2 by the fallback",
        "solves on a machine": "3: 3 late",
        "clipped values": "7",
        "steps skipped": "1",
        "shortened": "30%",
    }
    assert list(table.rows[1]) == ["b", "1 finished", "–", "–", "–", "–", "–"]
