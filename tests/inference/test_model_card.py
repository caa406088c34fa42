"""The card of a teacher: what it says, and that it says what it does not know."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gkd.heads import SoftmaxHead
from gkd.inference.check_input import InputCheck
from gkd.inference.check_teacher import TeacherCheck
from gkd.inference.model_card import ModelCard, cached_text, live_text, make_card
from gkd.inference.network_digest import network_digest
from gkd.inference.teacher import Teacher
from gkd.models import Backbone, InputSpec, count_macs, create_backbone, num_parameters
from tests.models.onnx_nets import face_net

CHECK = TeacherCheck(0.99251, 0.9753, 2000, 0.00349, 6000, "lfw")
IMAGENET = InputSpec(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
INPUT_CHECK = InputCheck(IMAGENET, (112, 112), 600, 5.498, InputSpec(), 5.258, -0.4, -0.07, 7)


def make_teacher(backbone: Backbone, precision: Any = "fp32") -> Teacher:
    return Teacher(backbone, SoftmaxHead(backbone.embedding_dim, 1234), IMAGENET, precision)


def small() -> Backbone:
    torch.manual_seed(0)
    return create_backbone("mobilefacenet_classic", embedding_dim=8, width_multiplier=0.25, input_size=(32, 48))


def card_of(backbone: Backbone, check: TeacherCheck | None = CHECK, **changes: Any) -> ModelCard:
    settings: dict[str, Any] = {
        "source": "weights.pth",
        "family": "mobilefacenet_classic of width 16 (300 tensors)",
        "input_reason": "declared",
        "class_weights": "class centres of 4,892 images",
        "execution": "live, fp32",
    }
    input_check = changes.pop("input_check", INPUT_CHECK)
    return make_card(make_teacher(backbone), check, input_check, **settings | changes)


def test_a_card_gathers_what_is_known() -> None:
    backbone = small()
    card = card_of(backbone)
    assert card.num_parameters == num_parameters(backbone)
    assert card.gmacs == count_macs(backbone) / 1e9
    assert card.sha256 == network_digest(backbone)
    assert (card.embedding_dim, card.input_size, card.num_classes) == (8, (32, 48), 1234)
    assert card.input == "rgb, mean 123.675 116.28 103.53, std 58.395 57.12 57.375"
    assert card.input_check == "best of 8 inputs on 600 pairs, d' 5.50; next rgb, mean 127.5, std 127.5: 5.26"
    assert (card.verification_set, card.num_pairs) == ("lfw", 6000)
    assert (card.accuracy, card.accuracy_std) == (0.99251, 0.00349)
    assert (card.train_rank1, card.num_train_images) == (0.9753, 2000)


def test_lines_stand_in_two_columns() -> None:
    card = replace(card_of(small()), sha256="ab" * 32, num_parameters=65_150_912, gmacs=12.1336, embedding_dim=512)
    assert card.lines() == [
        "teacher model card",
        "  source          weights.pth",
        "  family          mobilefacenet_classic of width 16 (300 tensors)",
        "  size            65.15 M parameters, 12.134 G multiply-accumulates an image, embedding_dim 512",
        f"  weights         sha256 {'ab' * 32}",
        "  input           rgb, mean 123.675 116.28 103.53, std 58.395 57.12 57.375, 32x48",
        "  input known by  declared",
        "  input check     best of 8 inputs on 600 pairs, d' 5.50; next rgb, mean 127.5, std 127.5: 5.26",
        "  class weights   class centres of 4,892 images, 1,234 classes",
        "  verification    99.25 +- 0.35 % on 6,000 pairs of lfw",
        "  training rank-1 97.53 % on 2,000 images",
        "  run             live, fp32",
        "  precision       fp32",
    ]


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    card = card_of(small(), None, family=None, input_reason=None, input_check="student.pt says its input")
    card = replace(card, num_parameters=None, gmacs=None)
    rows = {line[2:17].strip(): line[18:] for line in card.lines()[1:]}
    assert all(rows.values())
    assert rows["family"] == rows["input known by"] == rows["verification"] == rows["training rank-1"] == "unknown"
    assert rows["size"] == "unknown parameters, unknown multiply-accumulates an image, embedding_dim 8"
    assert rows["input check"] == "not checked: student.pt says its input"
    assert card.to_json()["accuracy"] is None


def test_too_few_pairs_are_told() -> None:
    check = InputCheck(IMAGENET, (32, 48), 98, reason="drawn has 49 same and 49 different pairs")
    card = card_of(small(), input_check=check)
    assert card.input_check == "not checked: drawn has 49 same and 49 different pairs"


def test_names_from_outside_stay_on_their_line() -> None:
    card = card_of(small(), replace(CHECK, pairs_name="lfw\nreal"), source="a\n\x1b[31mb.pth", family="x\ty")
    assert len(card.lines()) == 13
    assert not any(char in "".join(card.lines()) for char in "\n\x1b\t")


def test_json_holds_every_value() -> None:
    card = card_of(small())
    values = json.loads(json.dumps(card.to_json(), allow_nan=False))
    assert (values.pop("format"), values.pop("format_version")) == ("gkd.teacher_card", 1)
    assert ModelCard(**values | {"input_size": tuple(values["input_size"])}) == card


def test_an_onnx_network_is_counted_from_its_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = face_net(tmp_path / "net.onnx", batch=1)
    backbone = create_backbone(f"onnx:{path}")
    card = card_of(backbone)
    assert card.num_parameters == 4 * 3 * 16 + 4 + 16 * 8
    assert card.gmacs == (8 * 8 * 4 * 3 * 16 + 16 * 8) / 1e9
    assert card.sha256 == network_digest(backbone)
    path.unlink()
    card = card_of(backbone)
    assert (card.num_parameters, card.gmacs) == (None, None)
    assert "the teacher's size is not known: " in caplog.text
    assert "no such file" in caplog.text


def test_an_onnx_file_that_changed_is_not_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = face_net(tmp_path / "net.onnx", batch=1)
    backbone = create_backbone(f"onnx:{path}")
    face_net(path, embedding_dim=9)
    card = card_of(backbone)
    assert (card.num_parameters, card.gmacs) == (None, None)
    assert f"is another file than the one with the SHA-256 {backbone.sha256}" in caplog.text


def test_making_a_card_leaves_the_teacher_as_it_is() -> None:
    backbone = small()
    teacher = make_teacher(backbone)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    card_of(backbone)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(tensor.device.type == "cpu" for tensor in teacher.state_dict().values())


def test_ways_to_run_in_words() -> None:
    assert cached_text(Path("cache"), 12_000_000_000) == "cached: 12.0 GB in cache"
    assert cached_text(Path("cache"), 4_321_000) == "cached: 4.3 MB in cache"
    assert live_text("bf16", is_compiled=True) == "live, bf16, compiled"
    assert live_text("fp32", is_compiled=False) == "live, fp32"
