"""Every shipped config loads, builds, and stands beside a control that differs from it in the distillation alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gkd import build
from gkd.cli.plan import format_plan
from gkd.core.config import dump_yaml, load_config, parse_config, to_plain
from gkd.distill import GROUPINGS, LOSSES
from gkd.schema import TrainRun
from gkd.study.plan import StudyPlan
from tests.conftest import ROOT
from tests.train.tiny_run import write_data

STUDIES = [ROOT / "configs/study/celeba.yaml"]
CONFIGS = sorted(set((ROOT / "configs").rglob("*.yaml")) - set(STUDIES))
PAIRS = [
    ("quickstart/control", "quickstart/gkd"),
    ("train/mobilefacenet_ms1mv2_arcface", "distill/mobilefacenet_ms1mv2_gkd_from_iresnet100"),
    ("train/mobilefacenet_glint360k_arcface", "distill/mobilefacenet_glint360k_gkd_from_iresnet100"),
    ("train/mobilefacenet_ms1mv2_cosface", "distill/mobilefacenet_ms1mv2_gkd_from_iresnet50"),
    ("train/mobilefacenet_classic_celeba_cosface", "distill/mobilefacenet_classic_celeba_gkd_from_iresnet18"),
    ("study/celeba_control", "distill/mobilefacenet_classic_celeba_gkd_from_onnx"),
]


def load(name: str) -> TrainRun:
    return load_config(ROOT / "configs" / f"{name}.yaml", TrainRun)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images for the smallest batch of any shipped config once it is overridden."""
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    return path


def test_there_are_configs_of_every_kind() -> None:
    assert {path.parent.name for path in CONFIGS} == {"quickstart", "train", "distill", "study"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_and_its_resolved_form_loads_back(path: Path) -> None:
    config = load_config(path, TrainRun)
    assert parse_config(dump_yaml(config), TrainRun, where="resolved") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_builds(path: Path) -> None:
    config = load_config(path, TrainRun)
    with torch.device("meta"):
        build.build_backbone(config)
        build.build_head(config, 8, 10)
    build.build_margin(config)
    build.build_input_spec(config)
    build.build_schedule(config, images_per_epoch=100_000)
    assert len(build.build_terms(config)) == len(config.distill)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_dry_run_plans_a_config_on_small_data(path: Path, folder: Path) -> None:
    pairs = folder / "pairs.bin"
    overrides = [f"evaluation.sets=[{pairs}]", "train.batch_size=16", "data.train.name=recordio"]
    overrides += [f"data.train.path={folder / 'train.rec'}", "backbone.input_size=[32, 32]"]
    teacher = load_config(path, TrainRun).teacher
    is_distilled = teacher is not None
    if is_distilled:
        overrides.append(f"teacher.check_pairs={pairs}")
        overrides.append("teacher.run=none" if teacher.run else "teacher.backbone.name=onnx:none.onnx")
    text, is_ready = format_plan(load_config(path, TrainRun, overrides))
    assert "48 images of 6 classes" in text
    assert is_ready is not is_distilled
    if is_distilled:  # the teacher's files are all that is missing
        assert text.count("\n  ") == 1
        assert "student.pt: no such file" in text or ".onnx: no such file" in text


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_plans_its_runs(path: Path) -> None:
    plan = StudyPlan(path)
    methods = plan.study.methods
    assert len(methods) > 1
    for method in methods:
        assert len(plan.final_runs(method, 0, 0)) == len(plan.study.study.seeds)


@pytest.mark.parametrize(("control", "distilled"), PAIRS)
def test_a_student_differs_from_its_control_in_the_distillation_alone(control: str, distilled: str) -> None:
    ours, theirs = to_plain(load(control)), to_plain(load(distilled))
    for plain in (ours, theirs):
        del plain["teacher"], plain["distill"], plain["run"]["folder"]
    assert ours == theirs


def test_the_released_recipe_is_the_released_recipe() -> None:
    config = load("distill/mobilefacenet_ms1mv2_gkd_from_iresnet50")
    loss = build.build_terms(config)[0]
    assert (loss.loss.temperature, loss.warmup_epochs, loss.weight) == (4.0, 10, 1.0)
    assert loss.loss.weights == {"binary": 1.0, "primary": 8.0, "secondary": 0.0}
    assert (loss.loss.grouping.k, loss.loss.grouping.rank_by) == (10_000, "student")
    assert config.train.batch_size == 128 * 8
    assert (config.optim.lr, config.optim.momentum, config.optim.nesterov) == (0.1, 0.9, True)
    assert (config.train.epochs, config.schedule.warmup_epochs) == (20, 4)


def test_the_card_asks_for_an_iresnet100_teacher_with_arcface() -> None:
    teacher, student = (
        load(name) for name in ("train/iresnet100_ms1mv2_arcface", "distill/mobilefacenet_ms1mv2_gkd_from_iresnet100")
    )
    assert (teacher.backbone.name, teacher.margin.name) == ("iresnet100", "arcface")
    assert (student.backbone.name, student.margin.name) == ("mobilefacenet", "arcface")
    assert student.teacher is not None
    assert student.teacher.run == teacher.run.folder


def test_tables_are_what_the_configs_speak_of() -> None:
    assert set(LOSSES) == {"gkd", "kd", "dkd", "embedding", "rkd"}
    assert set(GROUPINGS) == {"top_k", "cumulative_mass"}
