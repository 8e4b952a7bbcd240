"""The page of a study: a folder with one Markdown file, its figures with their data, and one JSON file of all figures in it.

README.md           what was asked, what was found, tables and figures, how it was made
index.html          the same as one self-contained web page
NAME.svg, NAME.csv  a figure and the numbers in it
result.json         the tables' numbers, hardware, versions, seeds, command
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch

from heatbath.experiments.environment import command, host, versions
from heatbath.experiments.page_parts import Picture as Picture
from heatbath.experiments.page_parts import Table as Table
from heatbath.experiments.page_parts import download, pictures_html, prose_html
from heatbath.experiments.plots import save_figure
from heatbath.experiments.web_page import web_page


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
            (folder / "index.html").write_text(self._html(made, numbers=text), encoding="utf-8")
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
            *(picture.markdown() for picture in self.pictures),
            "## How it was made",
            "\n".join(f"- {line}" for line in self.setting),
            f"```\n{made['command']}\n```",
            f"Running it again makes only what is missing. {hardware['processor']}, {hardware['cores']} cores, "
            f"{hardware['system']}; {facts}. All numbers: [result.json](result.json)"
            + "".join(f", [{name}]({name})" for name in self.data)
            + ".",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _html(self, made: Mapping[str, Any], *, numbers: str) -> str:  # Any: JSON values
        facts = [[name, str(value)] for name, value in {**made["host"], **made["versions"]}.items()]
        files = {"result.json": numbers, **self.data}
        parts = [
            f"<h1>{escape(self.title)}</h1>",
            *(prose_html(paragraph) for paragraph in self.answer),
            *(f"<h2>{escape(heading)}</h2>{table.html()}" for heading, table in self.tables.items()),
            "<h2>Figures</h2>" + pictures_html(self.pictures) if self.pictures else "",
            "<h2>How it was made</h2>",
            prose_html("\n".join(f"- {line}" for line in self.setting)),
            f'<pre class="command">{escape(made["command"])}</pre>',
            "<p>Running it again makes only what is missing. All numbers: "
            + ", ".join(download(name, text, name) for name, text in files.items())
            + ".</p>",
            Table(["made on", ""], facts).html(),
        ]
        return web_page(f"heatbath: {self.title}", parts)
