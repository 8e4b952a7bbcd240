from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from heatbath.experiments import Hyper, Record, RunFiles, RunOptions, choose, run
from heatbath.experiments.bill_split import bill_tables
from heatbath.experiments.groups import group
from heatbath.experiments.report import _results, render_report, write_report
from tests.browser import browser, needs_chromium
from tests.experiments import hand, tasks

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


def test_no_text_of_a_record_becomes_html() -> None:
    """Every text in it is a script, names of metrics and of facts too."""
    script = "<script>alert(1)</script>\"onload='x'"

    def bad(value: object) -> object:
        if isinstance(value, str):
            return script + value
        return {script + str(k): bad(v) for k, v in value.items()} if isinstance(value, dict) else value

    one = hand.record(0, {2: (0.6, 1.0), 4: (0.4, 2.0)}, coverage="layers")
    kept = {key: one.header[key] for key in ("choice", "target")}
    header = {key: bad(value) for key, value in one.header.items()}
    header |= {key: {name: bad(value) for name, value in one.header[key].items()} for key in ("choice", "target", "dataset")}
    header |= {"seed": script, "batch_size": script, "choice": {**kept["choice"], "machine": script}}
    rows = [
        {**row, "metrics": bad(row["metrics"]), "optimizer": {script: script}} if "metrics" in row else row for row in one.rows
    ]
    rows = [{key: value for key, value in row.items() if key not in ("work", "occasions")} for row in rows]
    events = [{"event": "warning", "step": 2, "message": script}]
    page = Page(render_report([Record(Path(script), header, rows, events)], command=script))
    assert page.count.get("script", 0) == 0
    assert not page.open
    assert page.words.count("<script>alert(1)</script>") > 20


def test_the_page_needs_nothing_from_elsewhere(text: str) -> None:
    page = Page(text)
    assert page.fetched == []
    assert "script" not in page.count
    assert not re.search(r"@import|url\((?!#)", text)


def test_the_page_is_well_formed_and_has_its_parts(text: str) -> None:
    page = Page(text)
    assert page.open == []
    assert page.count["svg"] == page.count["figure"] == page.count["figcaption"] == 7  # 5 curves, time and energy
    assert page.count["details"] == 7 + 2  # a command for each figure, two runs
    assert text.count('download="') == 7


def test_the_page_says_what_was_run_on_what_with_what(text: str, records: list[Record]) -> None:
    words = Page(text).words
    for expected in (
        "blobs: 96 training and 30 test examples (made here)",
        "test accuracy ≥ 0.7",
        "K-FAC, thermodynamic solve (tngd-2024, 10 bits)",
        "heatbath demo --out 'a <b>'",
        records[0].header["versions"]["torch"],
        "not stated",
        "K-FAC, thermodynamic solve (tngd-2024, 10 bits), seed 0",
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
    with pytest.raises(OSError, match=r"cannot write the report .*there is no folder"):
        write_report(records, tmp_path / "missing" / "r.html", command="c")


def test_records_without_a_step_are_left_out_and_named(records: list[Record]) -> None:
    empty = replace(records[0], path=Path("killed.jsonl"), rows=[], events=[])
    assert "killed.jsonl holds no step and is left out" in render_report([*records, empty], command="c")
    with pytest.raises(ValueError, match="none of the 1 records holds a step: the runs were killed at their start"):
        render_report([empty], command="c")


def test_a_repeated_run_and_one_that_was_killed_are_named(records: list[Record]) -> None:
    again = replace(records[0], path=Path("again.jsonl"), events=[], header={**records[0].header, "started": "9999"})
    text = render_report([*records, again], command="c")
    assert "is left out: the same setting was run again with seed 0, later" in text
    assert "AdamW, seed 0: the record stops at step 20; it is running, or was killed" in text


def test_different_data_are_called_not_comparable(records: list[Record]) -> None:
    other = {**records[1].header, "dataset": {**records[1].header["dataset"], "name": "stand-in"}}
    page = render_report([records[0], replace(records[1], header=other)], command="c")
    assert "These runs saw different data: their figures are not comparable" in page


CONTRAST = """(() => {
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(
    v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const ground = element => { for (let e = element; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (c !== 'rgba(0, 0, 0, 0)') return light(c); } return NaN; };
  const seen = [...document.querySelectorAll('figure text')].map(t => [getComputedStyle(t).fill, t])
    .concat([...document.querySelectorAll('p, td, th, figcaption, h1')].map(e => [getComputedStyle(e).color, e]));
  return Math.min(...seen.map(([colour, element]) => ratio(light(colour), ground(element)))); })()"""


@needs_chromium
def test_a_real_browser_shows_the_page_on_laptop_and_phone_light_and_dark(text: str, tmp_path: Path) -> None:
    """Nothing to complain of, nothing wider than the screen, all figures drawn, text at the contrast of WCAG 2.2 (4.5 to 1)."""
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    with browser() as chromium:
        grounds = set()
        for width in (390, 1280):
            for dark in (False, True):
                chromium.look(page, width=width, dark=dark)
                assert chromium.complaints == []
                assert chromium.evaluate("innerWidth") == width
                assert chromium.evaluate(DRAWN) == 7
                for opened in ("false", "true"):
                    chromium.evaluate(f"document.querySelectorAll('details').forEach(part => part.open = {opened})")
                    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
                    assert chromium.evaluate(CONTRAST) >= 4.5
                grounds.add((dark, chromium.evaluate("getComputedStyle(document.body).backgroundColor")))
        assert len(grounds) == 2
        assert len({colour for _, colour in grounds}) == 2


DRAWN = """[...document.querySelectorAll('figure svg')].filter(svg => { const box = svg.getBoundingClientRect();
  return box.width > 200 && box.height > 100 && box.right <= innerWidth && svg.querySelectorAll('path').length > 5; }).length"""


@needs_chromium
def test_the_browser_notices_what_is_wrong_with_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<meta name="viewport" content="width=device-width"><p style="width: 900px; background: #fff; color: #ccc">wide</p>'
        "<img src='missing.png'><script>console.error('broken'); nothing()</script>"
    )
    with browser() as chromium:
        chromium.look(page, width=390)
        assert any("broken" in complaint for complaint in chromium.complaints)
        assert any("ERR_FILE_NOT_FOUND" in complaint for complaint in chromium.complaints)
        assert len(chromium.complaints) == 3
        assert chromium.evaluate("document.documentElement.scrollWidth") >= 900
        assert chromium.evaluate(CONTRAST) < 2


def test_every_column_of_the_results_is_what_records_by_hand_say() -> None:
    """Three seeds, of which one reaches the target earlier; refreshes are denser at first, so shares of the run would mislead.

    Steps 10, 20, 20 cost 5, 6 and 6 s, whole runs 8 s; t(97.5 %, 2 degrees of freedom) is 4.303 in printed tables.
    """
    errors = [(0.5, 0.4, 0.1), (0.6, 0.5, 0.2), (0.6, 0.5, 0.3)]
    runs = [
        hand.record(seed, {10: (a, 5), 20: (b, 6), 40: (c, 8)}, seconds=10.0 * seed)
        for seed, (a, b, c) in enumerate(errors, start=1)
    ]
    plain = [hand.record(seed, {40: (0.7, 0)}, choice=hand.PLAIN) for seed in (1, 2)]
    table = _results(group([*runs, *plain]))
    half = 4.303 * 0.1 / math.sqrt(3)
    assert hand.cells((table.head, table.rows)) == {
        "K-FAC, thermodynamic inverse (hand)": {
            "seeds": "1, 2, 3",
            "steps to target": "10 to 20",
            "final test error": f"0.2 ± {half:.2g}",
            "final test loss": f"0.4 ± {2 * half:.2g}",
            "steps": "40",
            "seconds here": "20 s",
            "predicted time, run": "8 s",
            "predicted time to target": "5.67 s",
        },
        "AdamW": {
            "seeds": "1, 2",
            "steps to target": "not reached",
            "final test error": "0.7, every seed",
            "final test loss": "1.4, every seed",
            "steps": "40",
            "seconds here": "10 s",
            "predicted time, run": "0 s",
            "predicted time to target": "–",
        },
    }


def test_the_table_of_parts_is_that_of_one_step_of_a_record_by_hand() -> None:
    runs = [hand.record(1, {10: (0.5, 5), 40: (0.2, 8)}), hand.record(2, {10: (0.5, 5), 40: (0.2, 10)})]
    (one,) = group(runs)
    bill = one.bill()
    assert bill is not None
    table = bill_tables([(one.title, bill)])["Predicted time of one step"]
    assert (table.head, table.rows) == (["optimizer", "settle", "total"], [[one.title, "225 ms", "225 ms"]])  # 9 s / 40
