"""The page of a study: a folder with one Markdown file, its figures with their data, and one JSON file of all figures in it.

README.md           what was asked, what was found, tables and figures, how it was made
NAME.svg, NAME.csv  a figure and the numbers in it
result.json         the tables' numbers, hardware, versions, seeds, command
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from heatbath.experiments.environment import command, host, versions
from heatbath.experiments.plots import save_figure


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        head: names of the columns.
        rows: of cells.
        note: below it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """As Markdown; the first column is the name of the row."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"{text}\n\n{self.note}" if self.note else text


@dataclass(frozen=True)
class Picture:
    """A figure with its data.

    Args:
        name: stem of its files.
        caption: what it shows.
        figure: drawn.
        data: as CSV.
    """

    name: str
    caption: str
    figure: Figure
    data: str


@dataclass(frozen=True)
class Page:
    """What a study has to say.

    Args:
        title: of the page.
        answer: what was found, in plain words; one paragraph each.
        setting: how it was found; one line of a list each.
        tables: by heading.
        pictures: the figures.
        data: further files, by name.
        result: all numbers, for `result.json`.
    """

    title: str
    answer: Sequence[str]
    setting: Sequence[str]
    tables: Mapping[str, Table]
    pictures: Sequence[Picture]
    data: Mapping[str, str]
    result: Mapping[str, Any]  # Any: JSON values

    def write(self, folder: Path) -> Path:
        """Write all files.

        Returns:
            The path of the page.

        Raises:
            OSError: they cannot be written.
        """
        page = folder / "README.md"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for picture in self.pictures:
                save_figure(picture.figure, folder / f"{picture.name}.svg")
                (folder / f"{picture.name}.csv").write_text(picture.data, encoding="utf-8")
            for name, text in self.data.items():
                (folder / name).write_text(text, encoding="utf-8")
            made = {"command": command(), "versions": versions(), "host": host(torch.device("cpu"))}
            text = json.dumps({**self.result, **made}, indent=1, ensure_ascii=False, allow_nan=False)
            (folder / "result.json").write_text(text + "\n", encoding="utf-8")
            page.write_text(self._markdown(made), encoding="utf-8")
        except OSError as error:
            raise OSError(f"cannot write the page in {folder}: {error.strerror or error}; choose another with --out") from error
        return page

    def _markdown(self, made: Mapping[str, Any]) -> str:  # Any: JSON values
        hardware = made["host"]
        facts = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
        parts = [
            f"# {self.title}",
            *self.answer,
            *(f"## {heading}\n\n{table.markdown()}" for heading, table in self.tables.items()),
            "## Figures",
            *(f"![{p.caption}]({p.name}.svg)\n\n*{p.caption}. Data: [{p.name}.csv]({p.name}.csv).*" for p in self.pictures),
            "## How it was made",
            "\n".join(f"- {line}" for line in self.setting),
            f"```\n{made['command']}\n```",
            f"Running it again makes only what is missing. {hardware['processor']}, {hardware['cores']} cores, "
            f"{hardware['system']}; {facts}. All numbers: [result.json](result.json)"
            + "".join(f", [{name}]({name})" for name in self.data)
            + ".",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"
