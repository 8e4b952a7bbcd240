"""The frame of a web page: one self-contained file that fetches nothing, for a laptop or a phone, light or dark."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1c2430; --faint: #5b6675; --rule: #d9dee5; --panel: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #12161c; --ink: #e6e9ee; --faint: #98a2b3; --rule: #303844; --panel: #1a2029; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1120px; padding: 1.5rem 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
p, li { max-width: 75ch; }
.faint, figcaption { color: var(--faint); font-size: .9rem; }
.scroll { overflow-x: auto; position: relative; margin: .5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; overflow-wrap: normal; }
th, td { text-align: left; padding: .4rem 1.2rem .4rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 400; position: sticky; left: 0; background: var(--ground); min-width: 8.5rem; }
td { white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .75rem; background: var(--panel); border-radius: 8px; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; margin: 0 auto .25rem; }
figure details { border: 0; padding: 0; }
figure summary { font-weight: 400; text-decoration: underline; }
figure pre { background: var(--ground); margin: .25rem 0 0; }
pre { background: var(--panel); padding: .75rem; border-radius: 8px; overflow-x: auto; font-size: .85rem; }
figure pre, pre.command { white-space: pre-wrap; }
details { border-top: 1px solid var(--rule); padding: .5rem 0; }
summary { cursor: pointer; font-weight: 600; }
.trouble { border-left: 4px solid #d55e00; padding-left: 2rem; margin-left: 0; }
a { color: inherit; }
@media (max-width: 600px) { /* a row becomes a card, and nothing has to be scrolled sideways */
  table, tbody, tr, tbody th { display: block; width: 100%; }
  thead { position: absolute; left: -9999px; }
  tbody tr { padding: .5rem 0; border-bottom: 1px solid var(--rule); }
  tbody th { position: static; font-weight: 600; border: 0; padding: .1rem 0; }
  td { display: flex; justify-content: space-between; gap: 1rem; white-space: normal; text-align: right; border: 0;
    padding: .1rem 0; }
  td::before { content: attr(data-label); color: var(--faint); text-align: left; flex: none; max-width: 50%; }
  td.empty { display: none; }
}
"""


def web_page(title: str, parts: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: plain text, for the tab of the browser.
        parts: HTML of the body; empty ones are left out.
    """
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # or a browser asks a server for one
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(part for part in parts if part) + "\n</body>\n</html>\n"
    )
