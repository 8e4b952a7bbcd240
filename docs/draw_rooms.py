"""Draw the rooms and who imports whom, from the code: `python docs/draw_rooms.py` writes docs/rooms.svg and prints the table.

Needs the development extra (grimp comes with import-linter).
"""

from collections import Counter
from pathlib import Path

import grimp
import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

FLOORS = [
    ["cli"],
    ["recipes"],
    ["experiments"],
    ["prediction"],
    ["optim", "samplers", "costs"],
    ["curvature", "solvers"],
    ["layers", "machines"],
    ["operators"],
    ["work"],
]
HERE = Path(__file__).parent


def count_imports() -> Counter[tuple[str, str]]:
    """How many imports lead from one room to another."""
    graph = grimp.build_graph("heatbath")
    counts: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for target in graph.find_modules_directly_imported_by(module):
            pair = tuple(name.split(".")[1] if "." in name else "" for name in (module, target))
            if all(pair) and "__main__" not in pair and pair[0] != pair[1]:
                counts[pair] += 1  # type: ignore[index]  # a pair
    return counts


def draw(counts: Counter[tuple[str, str]], path: Path) -> None:
    """One box per room, one arrow per pair, its width by the number of imports."""
    matplotlib.rcParams["svg.hashsalt"] = "heatbath"
    figure, axes = plt.subplots(figsize=(8, 7))
    where = {}
    for floor, rooms in enumerate(FLOORS):
        for i, room in enumerate(rooms):
            where[room] = ((i + 1) / (len(rooms) + 1), len(FLOORS) - floor)
    for (source, target), number in sorted(counts.items()):
        bend = 0.0 if where[source][0] != where[target][0] else 0.18 * (1 + where[source][1] - where[target][1]) / 4
        axes.annotate(
            "",
            xy=where[target],
            xytext=where[source],
            arrowprops={
                "arrowstyle": "-|>",
                "color": "0.55",
                "lw": 0.5 + 0.12 * number,
                "shrinkA": 16,
                "shrinkB": 16,
                "connectionstyle": f"arc3,rad={bend}",
            },
        )
    for room, (x, y) in where.items():
        axes.text(x, y, room, ha="center", va="center", bbox={"boxstyle": "round,pad=0.5", "fc": "#fff4e0", "ec": "#b35c00"})
    axes.set_xlim(0, 1)
    axes.set_ylim(0.4, len(FLOORS) + 0.6)
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    found = count_imports()
    for (source, target), number in sorted(found.items()):
        print(f"{source:>12} → {target:<12} {number}")
    draw(found, HERE / "rooms.svg")
    print(f"wrote {HERE / 'rooms.svg'}")
