from __future__ import annotations

from rich.console import Console

from heatbath.experiments.tables import machines_table, recipes_table, text_table
from heatbath.machines import presets
from tests.experiments import tasks


def shown(table: object) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_every_machine_is_listed_with_its_source() -> None:
    text = shown(machines_table(presets().values()))
    for spec in presets().values():
        assert spec.name in text
    assert "2405.13817" in text
    assert "16/16/16" in text


def test_every_recipe_is_listed_with_its_data_and_target() -> None:
    text = shown(recipes_table([tasks.experiment()]))
    for expected in ("blobs", "three Gaussian clouds", "test accuracy ≥ 0.7", "20 steps of 20"):
        assert expected in text


def test_a_table_of_text_shows_every_cell() -> None:
    text = shown(text_table(["name", "value"], [["a", "1"], ["b", "2"]], title="things"))
    assert all(word in text for word in ("things", "name", "value", "a", "1", "b", "2"))
