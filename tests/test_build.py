"""From configs to objects: class lists that must agree, names that must differ."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch

from gkd import build
from gkd.build_teacher import require_same_classes
from gkd.core.config import load_config
from gkd.core.errors import CheckpointError, ConfigError
from gkd.schema import TrainRun
from tests.train.tiny_run import config, write_data


def data(names=("ann", "bob"), fingerprint="f" * 64):
    return SimpleNamespace(num_identities=2, identity_names=names, fingerprint=fingerprint)


def meta(names=("ann", "bob"), fingerprint="f" * 64, num_classes=2):
    names = None if names is None else list(names)
    return {"num_classes": num_classes, "identity_names": names, "fingerprint": fingerprint}


def test_equal_names_are_the_same_classes_whatever_the_images():
    require_same_classes("head.pt", meta(fingerprint="0" * 64), data())


def test_other_names_are_other_classes_even_with_equal_fingerprints():
    with pytest.raises(CheckpointError, match=r"class 1 is 'bert' there and 'bob' in the training data"):
        require_same_classes("head.pt", meta(names=("ann", "bert")), data())


@pytest.mark.parametrize(("theirs", "ours"), [(None, None), (None, ("ann", "bob")), (("ann", "bob"), None)])
def test_without_names_on_both_sides_the_fingerprint_decides(theirs, ours):
    require_same_classes("head.pt", meta(names=theirs), data(names=ours))
    with pytest.raises(CheckpointError, match="was trained on other data"):
        require_same_classes("head.pt", meta(names=theirs, fingerprint="0" * 64), data(names=ours))


def test_another_number_of_classes_is_refused_with_both_numbers():
    with pytest.raises(CheckpointError, match="has 3 classes, the training data have 2"):
        require_same_classes("head.pt", meta(num_classes=3), data())


@pytest.fixture
def loaded(tmp_path):
    write_data(tmp_path)

    def load(*overrides, **sections):
        return load_config(config(tmp_path, **sections), TrainRun, overrides)

    return load


def test_two_sets_of_one_name_are_refused(loaded, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "pairs.bin").write_bytes((tmp_path / "pairs.bin").read_bytes())
    with pytest.raises(ConfigError, match="two sets are named 'pairs'"):
        build.build_pair_sets((tmp_path / "pairs.bin", other / "pairs.bin"))


def test_two_terms_of_one_loss_are_logged_apart(loaded):
    term = {"loss": {"name": "gkd", "grouping": {"name": "top_k", "k": 2}}}
    teacher = {"run": "t", "check_pairs": "p", "min_accuracy": 0.5, "min_train_rank1": 0.5}
    built = loaded(distill=[deepcopy(term) for _ in range(3)], teacher=teacher)
    assert [term.name for term in build.build_terms(built)] == ["gkd", "gkd_2", "gkd_3"]


def test_saving_and_evaluating_fall_on_the_end_of_an_epoch_unless_told_otherwise(loaded):
    settings = build.build_settings(loaded(), images_per_epoch=48)
    assert (settings.total_steps, settings.evaluate_every, settings.save_every) == (12, 6, 6)
    settings = build.build_settings(loaded("train.save_every=5", "evaluation.every=4"), images_per_epoch=48)
    assert (settings.evaluate_every, settings.save_every) == (4, 5)


def test_the_embedding_dim_reaches_the_head(loaded):
    dataset = build.build_dataset(loaded())
    objective = build.build_objective(loaded(), dataset, None, 6)
    assert objective.head.weight.shape == (6, 16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_tf32_on_a_cpu_is_told_to_change_nothing(loaded, caplog):
    loaded_config = loaded("train.tf32=true")
    objective = SimpleNamespace(backbone=build.build_backbone(loaded_config))
    build.prepare_backbone(loaded_config, objective)
    assert "train.tf32 changes nothing on a CPU" in caplog.text
