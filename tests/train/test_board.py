"""Histograms, pictures, settings and embeddings as TensorBoard's own reader finds them."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

from gkd.core.errors import DataError
from gkd.data import FaceFolder, RecordFile
from gkd.models import InputSpec, create_backbone
from gkd.train import board_projector
from gkd.train.board_hparams import hyper_parameters
from gkd.train.board_projector import Projector, fixed_samples
from gkd.train.board_summaries import histogram, image
from gkd.train.metrics import RunLog
from gkd.train.sample_images import picture_of
from tests.train.tiny_run import SIZE, write_data


def board(folder):
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "histograms": 0})
    found.Reload()
    return found


def test_a_histogram_counts_every_value_once(tmp_path):
    values = np.random.default_rng(0).normal(0.3, 0.2, 1000)
    log = RunLog(tmp_path, 0)
    log.show(7, [histogram("cosine", values)])
    (point,) = board(tmp_path).Histograms("cosine")
    found = point.histogram_value
    assert point.step == 7
    assert (found.min, found.max, found.num) == (values.min(), values.max(), 1000)
    assert found.sum == pytest.approx(values.sum())
    assert found.sum_squares == pytest.approx((values**2).sum())
    edges, counts = found.bucket_limit, found.bucket
    assert len(edges) == len(counts)
    for low, high, count in zip(edges[:-2], edges[1:-1], counts[1:-1], strict=True):
        assert count == sum(low <= value < high for value in values)
    assert sum(counts) == 1000


@pytest.mark.parametrize(("values", "num"), [([2.0] * 5, 5), ([1.0, np.nan, np.inf, -np.inf, 3.0], 2), ([1e30, 0], 2)])
def test_a_histogram_of_equal_or_unfit_values_holds_those_that_are_numbers(values, num):
    found = histogram("x", np.array(values)).histo
    assert found.num == sum(found.bucket) == num
    assert np.isfinite(found.bucket_limit).all()


@pytest.mark.parametrize("values", [[], [np.nan, np.inf]])
def test_no_numbers_give_no_histogram(values):
    assert histogram("x", np.array(values, dtype=np.float64)) is None


def test_a_picture_comes_back_in_its_colours(tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    log = RunLog(tmp_path, 0)
    log.show(3, [image("faces", pixels, "drawn ones")])
    found = board(tmp_path)
    (point,) = found.Images("faces")
    assert (point.step, point.height, point.width) == (3, 5, 7)
    decoded = cv2.imdecode(np.frombuffer(point.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), pixels)
    assert found.SummaryMetadata("faces").summary_description == "drawn ones"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_images_stand_in_rows_over_their_words():
    images = [np.full((112, 112, 3), 10 * (index + 1), dtype=np.uint8) for index in range(3)]
    picture = picture_of(images, [["id 1", "label 2"]] * 3)
    height, width = 112 + 2 * 13 + 3, 112
    assert picture.shape == (2 * height + 4, 2 * width + 4, 3)
    for index, (top, left) in enumerate([(0, 0), (0, width + 4), (height + 4, 0)]):
        assert (picture[top : top + 112, left : left + 112] == 10 * (index + 1)).all()
        words = picture[top + 112 : top + height, left : left + 112]
        assert words.min() < 100 < words.max()
    assert (picture[height + 4 :, width + 4 :] == 255).all()


@pytest.mark.parametrize("width", [16, 60, 112, 224])
def test_small_images_are_enlarged_by_a_whole_factor(width):
    one = np.random.default_rng(0).integers(0, 256, (8, width, 3)).astype(np.uint8)
    picture = picture_of([one], [[]])
    factor = -(-112 // width)
    assert picture.shape[1] == width * factor
    np.testing.assert_array_equal(picture[: 8 * factor][::factor, ::factor], one)


SETTINGS = {
    "run": {"folder": "/here", "seed": 5},
    "optim": {"lr": 0.1, "nesterov": True, "clip_norm": None},
    "backbone": {"input_size": [112, 96]},
    "data": {"more": []},
    "distill": [{"loss": {"name": "gkd"}}, {"loss": {"name": "kd"}}],
    "log": {"images": False},
}


def test_settings_are_flat_and_leave_out_what_changes_nothing():
    assert hyper_parameters(SETTINGS) == {
        "run.seed": 5,
        "optim.lr": 0.1,
        "optim.nesterov": True,
        "backbone.input_size": "112, 96",
        "data.more": "",
        "distill.0.loss.name": "gkd",
        "distill.1.loss.name": "kd",
    }


def test_the_table_of_hyper_parameters_gets_them_with_their_types(tmp_path):
    RunLog(tmp_path, 0, config=SETTINGS).close()
    content = board(tmp_path).SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    info = parse_session_start_info_plugin_data(content)
    assert info.group_name == tmp_path.name
    found = {key: getattr(value, value.WhichOneof("kind")) for key, value in info.hparams.items()}
    assert found == hyper_parameters(SETTINGS)
    assert info.hparams["optim.nesterov"].WhichOneof("kind") == "bool_value"


def test_a_log_without_settings_has_no_table(tmp_path):
    RunLog(tmp_path, 0).close()
    assert SESSION_START_INFO_TAG not in board(tmp_path).Tags()["tensors"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    write_data(folder, images_per_identity=10)
    return RecordFile(folder / "train.rec")


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return create_backbone("iresnet18", embedding_dim=16, width_multiplier=0.0625, input_size=(SIZE, SIZE))


def test_the_projector_shows_unit_embeddings_with_their_labels(tmp_path, faces, student):
    projector = Projector(tmp_path, faces, 20)
    student.train()
    projector.show(student, InputSpec(), 8, torch.device("cpu"))
    assert student.training
    rows = np.loadtxt(tmp_path / "embeddings.tsv", delimiter="\t")
    assert rows.shape == (20, 16)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-3)
    head, *about = (tmp_path / "embedding_labels.tsv").read_text().splitlines()
    assert head == "label\tname\tsample_id"
    labels = [line.split("\t")[0] for line in about]
    assert labels == ["0"] * 8 + ["1"] * 8 + ["2"] * 4
    sample_ids = [int(line.split("\t")[2]) for line in about]
    assert [faces.labels[sample] for sample in sample_ids] == [int(label) for label in labels]
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert 'tensor_path: "embeddings.tsv"' in config
    assert 'metadata_path: "embedding_labels.tsv"' in config


@pytest.mark.parametrize(("num_wanted", "num_found"), [(0, 0), (3, 3), (48, 48), (55, 55), (1000, 60)])
def test_samples_are_fixed_and_as_many_as_there_are(faces, num_wanted, num_found):
    found = fixed_samples(faces, num_wanted)
    assert len(found) == len(set(found)) == num_found
    assert found == fixed_samples(faces, num_wanted)
    counts = np.bincount(faces.labels[found], minlength=6)
    assert num_found > 48 or counts.max(initial=0) <= 8


def test_streamed_data_give_their_first_images(faces, monkeypatch):
    monkeypatch.setattr(board_projector, "is_streamed", lambda data: True)
    assert fixed_samples(faces, 5) == [0, 1, 2, 3, 4]


def test_hostile_names_stay_in_their_cells(tmp_path, student, faces):
    folder = tmp_path / "faces"
    (folder / "a\tb\nc").mkdir(parents=True)
    (folder / "a\tb\nc" / "1.jpg").write_bytes(faces[0][0])
    Projector(tmp_path, FaceFolder(folder), 5).show(student, InputSpec(), 8, torch.device("cpu"))
    assert (tmp_path / "embedding_labels.tsv").read_text().splitlines()[1:] == ["0\ta b c\t0"]


class Damaged:
    """The faces, of which one cannot be read."""

    identity_names = None

    def __init__(self, faces):
        self.labels = faces.labels
        self.faces = faces
        self.describe = faces.describe

    def __len__(self):
        return len(self.faces)

    def __getitem__(self, index):
        if index == self.faces.labels.tolist().index(1):
            raise DataError("key 8: damaged")
        return self.faces[index]


def test_an_image_that_cannot_be_read_ends_the_projector_and_nothing_else(tmp_path, faces, student, caplog):
    projector = Projector(tmp_path, Damaged(faces), 20)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            projector.show(student, InputSpec(), 8, torch.device("cpu"))
    assert caplog.text.count("no embeddings for TensorBoard's projector from now on: key 8: damaged") == 1
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_of_and_no_more(tmp_path, faces, student, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board_projector, "_write", full)
    Projector(tmp_path, faces, 2).show(student, InputSpec(), 8, torch.device("cpu"))
    assert "projector cannot be written: [Errno 28] No space left on device" in caplog.text
