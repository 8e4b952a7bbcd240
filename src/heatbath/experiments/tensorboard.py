"""TensorBoard's view of a run: losses, metrics and what the optimizer reports, by step."""

from __future__ import annotations

import math
import os
import socket
import time
from typing import IO, Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from heatbath.experiments.records import Row, RunFiles

FLUSH_SECONDS = 5.0


class TensorBoardLog:
    """A watcher that writes a TensorBoard event file; look at it with `tensorboard --logdir FOLDER`.

    It writes in the thread of the run. `SummaryWriter` has a thread of its own, which prints a
    traceback where it cannot write.

    Args:
        files: of the run.
    """

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self.flushed = 0.0
        self.file: IO[bytes] | None = None

    def start(self, header: Row, step: int) -> None:
        """Open the file; what an earlier, killed process wrote beyond `step` is purged."""
        folder = self.files.tensorboard
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self.file = open(folder / name, "xb")  # noqa: SIM115  # closed by close()
        self._write(step + 1 if step else 0, file_version="brain.Event:2")
        if step:
            self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def row(self, row: Row) -> None:
        """Add the numbers of a row."""
        scalars = {"loss": row["loss"], **row.get("metrics", {}), **_prefixed(row.get("optimizer", {}))}
        for name, value in scalars.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._write(row["step"], summary=summary.scalar(name.replace(" ", "_"), value))
        if self.file is not None and time.monotonic() > self.flushed + FLUSH_SECONDS:
            self.flushed = time.monotonic()
            self.file.flush()

    def event(self, event: Row) -> None:
        """Add the words of an event."""
        self._write(event["step"], summary=summary.text("event", f"{event['event']}: {event['message']}"))

    def close(self) -> None:
        """Write out and close."""
        if self.file is not None:
            self.file.close()

    def _write(self, step: int, **content: Any) -> None:  # Any: messages of TensorBoard's protocol
        assert self.file is not None
        event = Event(wall_time=time.time(), step=step, **content)
        RecordWriter(self.file).write(event.SerializeToString())


def _prefixed(report: Row) -> Row:
    return {f"optimizer/{name}": value for name, value in report.items()}
