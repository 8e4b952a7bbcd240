"""`heatbath study NAME RECIPE`: many trials, one page; one file per study."""

from __future__ import annotations

import typer

from heatbath.cli.study import batch_size, complexity, convergence, quantization, runtime

app = typer.Typer(help="Answer a question by many trials and one page. Kill a study at will: run again, it goes on.")

app.command()(convergence.convergence)
app.command()(quantization.quantization)
app.command("batch-size")(batch_size.batch_size)
app.command()(runtime.runtime)
app.command()(complexity.complexity)
