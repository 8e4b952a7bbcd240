from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from heatbath.experiments import Hyper, Record, RunFiles, RunOptions, choose, run
from heatbath.experiments.report import render_report, write_report
from tests.experiments import tasks

VOID = {"meta", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """Reads a page: its elements, whether they nest, and everything that would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.count, self.fetched, self.words = list[str](), dict[str, int](), list[str](), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "srcset", "data") and value and not value.startswith(("#", "data:")):
                self.fetched.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return [tasks.train(tmp_path_factory.mktemp(name), name) for name in ("adamw", "solve")]


@pytest.fixture(scope="module")
def text(records: list[Record]) -> str:
    return render_report(records, command="heatbath demo --out 'a <b>'")


def test_the_page_needs_nothing_from_elsewhere(text: str) -> None:
    page = Page(text)
    assert page.fetched == []
    assert "script" not in page.count
    assert "link" not in page.count
    assert not re.search(r"@import|url\((?!#)", text)


def test_the_page_is_well_formed_and_has_its_parts(text: str) -> None:
    page = Page(text)
    assert page.open == []
    assert page.count["svg"] == page.count["figure"] == 5
    assert page.count["details"] == 2
    assert text.count('download="') == 5


def test_the_page_says_what_was_run_on_what_with_what(text: str, records: list[Record]) -> None:
    words = Page(text).words
    for expected in (
        "blobs: 96 training and 30 test examples (made here)",
        "test accuracy ≥ 0.7",
        "K-FAC, thermodynamic solve (tngd-2024, 10 bits)",
        "heatbath demo --out 'a <b>'",
        records[0].header["versions"]["torch"],
        "not stated",
        "seed 0",
    ):
        assert expected in words


def test_the_page_follows_light_and_dark_and_fits_a_phone(text: str) -> None:
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport" content="width=device-width' in text


def test_trouble_stands_above_the_table(tmp_path: Path) -> None:
    task = tasks.experiment(hyper={"sgd": Hyper(lr=1e38)})
    options = RunOptions(steps=20, checkpoint_every=0)
    record = run(task, choose(task, "sgd"), options=options, files=RunFiles(tmp_path))
    page = render_report([record], command="c")
    assert page.index("lower --lr") < page.index("<h2>Result")


def test_the_page_is_written_to_a_file(tmp_path: Path, records: list[Record]) -> None:
    write_report(records, tmp_path / "r.html", command="c")
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path, records: list[Record]) -> None:
    with pytest.raises(OSError, match=r"cannot write the report .*No such file"):
        write_report(records, tmp_path / "missing" / "r.html", command="c")
