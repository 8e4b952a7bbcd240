"""What pages are made of, whether web pages or Markdown: tables, and figures that carry their data and their command.

A figure inside a web page is a vector graphic that takes the page's text colour. Its data are in the page as well, as CSV
behind a link, so one file is all there is to keep or send.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby

from matplotlib.figure import Figure

from heatbath.experiments.environment import command
from heatbath.experiments.plots import inline_svg

EMPTY = ' class="empty"'


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

    def html(self) -> str:
        """As HTML, in a frame that scrolls sideways where it must; on a phone each row becomes a card."""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.head)
        rows = "".join(f"<tr>{self._row(row)}</tr>" for row in self.rows)
        table = f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        return table + (f'<p class="faint">{escape(self.note)}</p>' if self.note else "")

    def _row(self, row: Sequence[str]) -> str:
        cells = zip(self.head[1:], row[1:], strict=True)
        values = (
            f'<td data-label="{escape(name)}"{EMPTY if cell == "–" else ""}><span>{escape(cell)}</span></td>'
            for name, cell in cells
        )
        return f'<th scope="row">{escape(row[0])}</th>' + "".join(values)


@dataclass(frozen=True)
class Picture:
    """A figure with its data and the command that made it.

    Args:
        name: stem of its files; unique in its page.
        caption: what it shows, without a full stop.
        figure: drawn.
        data: as CSV.
        command: that made it; by default the one that is running.
    """

    name: str
    caption: str
    figure: Figure
    data: str
    command: str = field(default_factory=command)

    def markdown(self) -> str:
        """As Markdown, with figure and data in files beside the page."""
        data, made = f"{self.name}.csv", self.command.replace("\n", "; ")
        return f"![{self.caption}]({self.name}.svg)\n\n*{self.caption}. Data: [{data}]({data}).* Made by `{made}`."

    def html(self) -> str:
        """As HTML that needs no file beside it."""
        caption = self.caption[:1].upper() + self.caption[1:]
        svg = inline_svg(self.figure, name=self.name).replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
        link = download(f"{self.name}.csv", self.data, "data (CSV)")
        made = f"<details><summary>command</summary><pre>{escape(self.command)}</pre></details>"
        return f"<figure>{svg}<figcaption>{escape(caption)}. {link}{made}</figcaption></figure>"


def pictures_html(pictures: Sequence[Picture]) -> str:
    """Figures side by side where there is room."""
    return '<div class="figures">' + "".join(picture.html() for picture in pictures) + "</div>"


def download(name: str, text: str, words: str) -> str:
    """A link to a file that is inside the page."""
    kind = "text/csv" if name.endswith(".csv") else "application/json" if name.endswith(".json") else "text/plain"
    data = base64.b64encode(text.encode()).decode()
    return f'<a download="{escape(name)}" href="data:{kind};charset=utf-8;base64,{data}">{escape(words)}</a>'


def prose_html(text: str) -> str:
    """A paragraph of Markdown as HTML: lists, bold, code, and links, which stay links where they lead out."""
    html = escape(text)
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", html)
    html = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html)
    html = re.sub(r"\[([^\]]+)\]\((https?://[^)\s]+)\)", r'<a href="\2">\1</a>', html)
    html = re.sub(r"\[([^\]]+)\]\([^)\s]+\)", r"\1", html)
    parts: list[str] = []
    for item, lines in groupby(html.split("\n"), key=lambda line: line.startswith("- ")):
        if item:
            parts.append("<ul>" + "".join(f"<li>{line[2:]}</li>" for line in lines) + "</ul>")
        elif words := " ".join(lines).strip():
            parts.append(f"<p>{words}</p>")
    return "".join(parts)
