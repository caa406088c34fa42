"""`tools/train.py` on several sets, in other orders, with augmentations and from tar shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gkd.cli.train import main
from gkd.data import RecordFile, TarShards
from gkd.data.tar_writing import write_shards
from gkd.inference.check_teacher import sampled_images
from tests.cli.test_train import refused
from tests.train.tiny_run import config, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    write_shards(path / "train.rec", path / "shards", images_per_shard=10, seed=1)
    return path


def weights(run: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(run / "weights" / "student.pt", weights_only=True)["state_dict"]
    return loaded


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_several_sets_give_their_share_of_an_epoch(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_data(other, images_per_identity=4)
    path = config(folder)
    more = f"data.more=[{{data: {{name: recordio, path: {other / 'train.rec'}}}, weight: 0.5}}]"
    assert main([str(path), more, f"run.folder={tmp_path / 'run'}", "train.batch_size=8"]) == 0
    log = capsys.readouterr().err
    assert "48 of the 48 of set 1 (weight 1), 12 of the 24 of set 2 (weight 0.5)" in log
    assert "72 images of 12 identities, 14 steps" in log
    assert "epoch 0 leaves out 4 images that fill no batch: sample ids " in log


def test_a_balanced_run_that_was_stopped_goes_on_to_the_same_weights(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(folder)
    settings = ["data.sampling={name: balanced, images_per_identity: 2}", "data.augment=[flip, cutout, photometric]"]
    assert main([str(path), *settings, f"run.folder={tmp_path / 'whole'}"]) == 0
    settings += [f"run.folder={tmp_path / 'resumed'}", "train.save_every=5", "train.keep_last=9"]
    assert main([str(path), *settings]) == 0
    for later in ("step_00000010", "step_00000012"):
        (tmp_path / "resumed" / "checkpoints" / later / "complete.json").unlink()
    assert main([str(path), *settings]) == 0
    assert "resuming from" in capsys.readouterr().err
    assert_equal_weights(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_train_as_any_other_set(folder: Path, tmp_path: Path, workers: int) -> None:
    shards = f"data.train={{name: webdataset, path: {folder / 'shards'}}}"
    settings = [shards, "data.sampling={name: shards, lanes: 4}", f"data.workers={workers}"]
    run = tmp_path / "run"
    assert main([str(config(folder)), *settings, f"run.folder={run}"]) == 0
    one_lane = tmp_path / "again"
    assert main([str(config(folder)), *settings, "data.workers=1", f"run.folder={one_lane}"]) == 0
    assert_equal_weights(run, one_lane)


def test_orders_that_do_not_fit_the_data_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = f"data.train={{name: webdataset, path: {folder / 'shards'}}}"
    path = config(folder)
    assert "uniform order over tar shards would fetch a shard for every image" in refused(capsys, path, shards)
    assert "sampling shards needs a data set of tar shards" in refused(capsys, path, "data.sampling=shards")
    more = f"data.more=[{{data: {{name: webdataset, path: {folder / 'shards'}}}}}]"
    assert "tar shards cannot be joined with other sets" in refused(capsys, path, more)
    flips = "data.augment=[flip, flip]"
    assert "flip is listed 2 times" in refused(capsys, path, flips, f"run.folder={folder / 'never'}")


def test_a_dry_run_tells_order_and_augmentation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["data.sampling={name: balanced, images_per_identity: 2}", "data.augment=[flip, grey]"]
    assert main([str(config(folder)), *settings, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "order           balanced sampling: batches of 4 identities x 2 images" in output
    assert "augmentation    flip, grey" in output


def test_a_teacher_is_checked_on_the_first_shards_alone(folder: Path) -> None:
    shards = TarShards(str(folder / "shards"))
    sampled = sampled_images(shards, 15)
    assert sampled.tolist() == np.concatenate(list(shards.shard_ids))[:15].tolist()
    for index in sampled:
        assert shards[int(index)] == RecordFile(folder / "train.rec")[int(index)]
    assert shards.num_loads == 2
    assert sampled_images(RecordFile(folder / "train.rec"), 4).tolist() == [0, 15, 31, 47]
