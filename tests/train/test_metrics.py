"""Sums over steps and the files they go to."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gkd.train.metrics import MetricSums, RunLog, read_metrics


def test_means_are_weighted_by_their_counts_and_start_again():
    sums = MetricSums()
    sums.add({"loss": torch.tensor(1.0)}, 3)
    sums.add({"loss": torch.tensor(5.0), "norm": torch.tensor(2.0)}, 1)
    assert sums.reduce() == {"loss": pytest.approx(2.0), "norm": pytest.approx(2.0)}
    assert sums.reduce() == {}


def test_a_resumed_log_drops_what_the_run_will_write_again(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss/total": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss/to')  # cut by a kill
    log = RunLog(tmp_path, 2)
    log.write(3, {"loss/total": 30.0})
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl", "loss/total") == ([1, 2, 3], [1.0, 2.0, 30.0])


def board_points(folder, name):
    """The steps and values that TensorBoard shows."""
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    points = board.Scalars(name)
    return [point.step for point in points], [point.value for point in points]


@pytest.mark.parametrize("start_step", [1, 2, 3])
def test_tensorboard_keeps_the_point_at_the_resume_step_and_drops_those_after_it(tmp_path, start_step):
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss/total": float(step)})
    log.close()
    log = RunLog(tmp_path, start_step)
    for step in range(start_step + 1, 6):
        log.write(step, {"loss/total": 10.0 * step})
    log.close()
    wanted = [float(step) if step <= start_step else 10.0 * step for step in range(1, 6)]
    assert board_points(tmp_path, "loss/total") == ([1, 2, 3, 4, 5], wanted)
    assert read_metrics(tmp_path / "metrics.jsonl", "loss/total") == ([1, 2, 3, 4, 5], wanted)


def test_a_line_holds_step_time_and_values(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write(7, {"optim/lr": 0.1})
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["step"] == 7
    assert line["optim/lr"] == 0.1
    assert line["time"] > 1e9
    assert list((tmp_path / "tensorboard").iterdir())
