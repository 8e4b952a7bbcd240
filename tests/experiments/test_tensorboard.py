from __future__ import annotations

from pathlib import Path

import pytest

from heatbath.experiments import RunFiles


@pytest.mark.slow
def test_tensorboard_gets_losses_metrics_and_reports_also_after_resuming(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from heatbath.experiments.tensorboard import TensorBoardLog
    from tests.experiments import tasks

    files = RunFiles(tmp_path)
    tasks.train(tmp_path, "kfac", steps=10, watchers=[TensorBoardLog(files)])
    record = tasks.train(tmp_path, "kfac", steps=20, resume=True, watchers=[TensorBoardLog(files)])
    events = EventAccumulator(str(files.tensorboard))
    events.Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == list(range(21))
    assert [event.value for event in losses] == pytest.approx([row["loss"] for row in record.rows], rel=1e-6)
    assert [event.step for event in events.Scalars("test_accuracy")] == [0, 5, 10, 15, 20]
    assert "optimizer/refreshes" in events.Tags()["scalars"]
