"""TensorBoard's view of a run: losses, metrics and what the optimizer reports, by step."""

from __future__ import annotations

import math

from torch.utils.tensorboard import SummaryWriter

from heatbath.experiments.records import Row, RunFiles


class TensorBoardLog:
    """A watcher that writes TensorBoard event files; look at them with `tensorboard --logdir FOLDER`.

    Args:
        files: of the run.
    """

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self.writer: SummaryWriter | None = None

    def start(self, header: Row, step: int) -> None:
        """Open the files; what an earlier, killed process wrote beyond `step` is purged."""
        self.writer = SummaryWriter(str(self.files.tensorboard), purge_step=step + 1 if step else None)

    def row(self, row: Row) -> None:
        """Add the numbers of a row."""
        assert self.writer is not None
        scalars = {"loss": row["loss"], **row.get("metrics", {}), **_prefixed(row.get("optimizer", {}))}
        for name, value in scalars.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self.writer.add_scalar(name.replace(" ", "_"), value, row["step"])

    def event(self, event: Row) -> None:
        """Add the words of an event."""
        assert self.writer is not None
        self.writer.add_text("event", f"{event['event']}: {event['message']}", event["step"])

    def close(self) -> None:
        """Write out and close."""
        if self.writer is not None:
            self.writer.close()


def _prefixed(report: Row) -> Row:
    return {f"optimizer/{name}": value for name, value in report.items()}
