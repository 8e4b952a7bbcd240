from __future__ import annotations

import base64
import re

from matplotlib.figure import Figure

from heatbath.experiments.page_parts import Picture, Table, prose_html


def test_a_table_says_its_cells_in_both_forms() -> None:
    table = Table(["run", "loss", "steps"], [["a|b", "<1", "–"]], "note & note")
    assert table.markdown() == "| run | loss | steps |\n| --- | ---: | ---: |\n| a\\|b | <1 | – |\n\nnote & note"
    html = table.html()
    assert '<td data-label="loss"><span>&lt;1</span></td>' in html
    assert '<td data-label="steps" class="empty">' in html
    assert "note &amp; note" in html


def test_a_figure_carries_its_data_and_its_command_in_both_forms() -> None:
    picture = Picture("loss", "loss against step", Figure(), "step,loss\n0,1\n", "train 'a <b>'\nreport")
    html = picture.html()
    found = re.search(r'download="loss.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', html)
    assert found is not None
    assert base64.b64decode(found[1]).decode() == "step,loss\n0,1\n"
    assert "train &#x27;a &lt;b&gt;&#x27;\nreport" in html
    assert 'role="img" aria-label="Loss against step"' in html
    assert picture.markdown().endswith("Data: [loss.csv](loss.csv).* Made by `train 'a <b>'; report`.")


def test_prose_keeps_what_markdown_says() -> None:
    text = "**a** < `b`, [c](c.md), [d](https://d.org/x)\n- one\n- two\nend"
    assert prose_html(text) == (
        '<p><strong>a</strong> &lt; <code>b</code>, c, <a href="https://d.org/x">d</a></p>'
        "<ul><li>one</li><li>two</li></ul><p>end</p>"
    )


def test_prose_cannot_leave_the_address_of_its_link() -> None:
    from heatbath.experiments.page_parts import prose_html

    html = prose_html('<b> [x](https://a"onmouseover="alert(1)) `<script>`')
    assert html == '<p>&lt;b&gt; <a href="https://a&quot;onmouseover=&quot;alert(1">x</a>) <code>&lt;script&gt;</code></p>'
