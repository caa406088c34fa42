"""What `--dry-run` says of heads whose classes are split over ranks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gkd.cli.memory import estimate_memory, format_bytes
from gkd.cli.plan import format_plan
from gkd.core.config import load_config
from gkd.models import create_backbone
from gkd.schema import TrainRun
from tests.train.tiny_run import config, write_data

TEACHER = {"run": "nowhere", "check_pairs": "pairs.bin", "min_accuracy": 0.5, "min_train_rank1": 0.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


def plan(folder: Path, *overrides: str, **sections: Any) -> tuple[str, bool]:
    return format_plan(load_config(config(folder, **sections), TrainRun, list(overrides)))


@pytest.mark.parametrize("name", ["softmax", "sharded", "partial_fc"])
def test_it_prints_the_memory_a_rank_needs_with_each_head(folder: Path, name: str) -> None:
    text, is_ready = plan(folder, f"head.name={name}")
    assert is_ready, text
    lines = re.findall(r"^head (\w+) +([\d.]+ [MG]iB) a rank: class weights .* scores (.*)$", text, re.MULTILINE)
    assert [line[0] for line in lines] == ["softmax", "sharded", "partial_fc"]
    assert [line[0] for line in lines if line[2].endswith("<- this run")] == [name]
    assert "with sample_rate 0.1" in lines[2][2]


def test_the_ranks_of_torchrun_share_the_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_config(config(folder, head={"name": "partial_fc", "sample_rate": 0.25}), TrainRun)
    backbone, num_classes = create_backbone("iresnet18", embedding_dim=512, width_multiplier=0.0625), 800_000
    of_heads = {}
    for ranks in ("1", "8"):
        monkeypatch.setenv("WORLD_SIZE", ranks)
        heads = ("softmax", "sharded", "partial_fc")
        of_heads[ranks] = {name: estimate_memory(loaded, backbone, num_classes, name).class_weights for name in heads}
    row = 512 * 4
    assert of_heads["1"]["softmax"] == of_heads["8"]["softmax"] == of_heads["1"]["sharded"] == 3 * num_classes * row
    assert of_heads["8"]["sharded"] == 3 * num_classes // 8 * row
    # Weights and momentum whole, the gradient of a quarter, and of the 8 images' classes.
    assert of_heads["8"]["partial_fc"] == (2 * num_classes // 8 + num_classes // 32 + 8) * row


def test_more_ranks_than_classes_are_in_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "7")
    text, is_ready = plan(folder, "head.name=sharded")
    assert not is_ready
    assert "6 classes cannot be shared out among 7 ranks" in text
    assert plan(folder, "head.name=softmax")[1]


@pytest.mark.parametrize("loss", ["kd", "dkd"])
def test_losses_that_need_all_logits_are_in_the_way(folder: Path, loss: str) -> None:
    given = {"teacher": TEACHER, "distill": [{"loss": {"name": loss}}]}
    text, is_ready = plan(folder, "head.name=sharded", **given)
    assert not is_ready
    assert f"distill.0: {loss} needs the logits of all classes, which head.name=sharded never has in one place" in text
    assert "never has in one place" not in plan(folder, "head.name=softmax", **given)[0]


def test_two_terms_on_logits_are_in_the_way(folder: Path) -> None:
    terms = [{"loss": {"name": "gkd"}}, {"loss": {"name": "embedding"}}, {"loss": {"name": "gkd"}}]
    text, _ = plan(folder, "head.name=partial_fc", teacher=TEACHER, distill=terms)
    assert "distill: 2 losses compare logits; head.name=partial_fc computes one" in text


def test_a_rate_outside_its_range_says_where(folder: Path) -> None:
    with pytest.raises(Exception, match=r"head: head\.sample_rate must lie in \(0, 1\], got 1\.5") as caught:
        plan(folder, "head.name=partial_fc", "head.sample_rate=1.5")
    assert type(caught.value).__name__ == "ConfigError"


def test_partial_fc_says_that_groups_are_formed_over_what_is_drawn(folder: Path) -> None:
    given = {"teacher": TEACHER, "distill": [{"loss": {"name": "gkd"}}]}
    note = "Primary and Secondary are formed over the classes that partial_fc draws in each step, about 0.1 of all"
    assert note in plan(folder, "head.name=partial_fc", **given)[0]
    assert note not in plan(folder, "head.name=sharded", **given)[0]
    assert note not in plan(folder, "head.name=partial_fc")[0]


def test_bytes_are_written_in_a_unit_that_fits() -> None:
    assert (format_bytes(3 << 20), format_bytes(3 << 29)) == ("3.0 MiB", "1.50 GiB")


def test_blocks_that_are_computed_again_need_less(folder: Path) -> None:
    needed = {}
    for value in ("false", "true"):
        text, _ = plan(folder, f"train.checkpoint_activations={value}")
        (found,) = re.findall(r"activations ([\d.]+) MiB", text)
        needed[value] = float(found)
    assert needed["true"] < needed["false"]
