"""Draw the README's picture from the records of a demo: `python docs/draw_demo.py FOLDER` writes docs/demo.svg."""

import sys
from pathlib import Path

from heatbath.experiments.plots import Axis, curves
from heatbath.experiments.records import read_record

if __name__ == "__main__":
    records = [read_record(path) for path in sorted(Path(sys.argv[1]).glob("*.jsonl"))]
    figure = curves(records, Axis("loss", label="training loss", log=True))
    figure.savefig(Path(__file__).parent / "demo.svg", metadata={"Date": None})
