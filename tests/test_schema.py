"""The schema of runs: defaults, refusals, agreement with the classes it configures, and the JSON Schema tool."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from gkd.cli.schema import main
from gkd.core.config import dump_yaml, json_schema, parse_config
from gkd.core.errors import ConfigError
from gkd.distill import CumulativeMass, GroupedKD
from gkd.heads import ArcFace
from gkd.models import BACKBONES, InputSpec
from gkd.schema import DistillTerm, OptimSettings, ScheduleSettings, TrainRun
from gkd.train.optim import build_sgd
from gkd.train.schedule import Schedule
from tests.conftest import ROOT

MINIMAL = """\
run: {folder: runs/a}
data:
  train: {name: recordio, path: faces/train.rec}
backbone: mobilefacenet
margin: arcface
optim: {lr: 0.1}
train: {epochs: 2, batch_size: 64}
"""
TEACHER = "teacher: {run: runs/t, check_pairs: lfw.bin, min_accuracy: 0.99, min_train_rank1: 0.9}\n"
DISTILLED = MINIMAL + TEACHER + "distill:\n- loss: gkd\n"


def parse(text: str, *overrides: str) -> TrainRun:
    return parse_config(text, TrainRun, overrides, where="x.yaml")


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, *overrides)
    return str(caught.value).split("\n")[1:]


def signature_defaults(function: object) -> dict[str, object]:
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    return {key: value.default for key, value in parameters.items() if value.default is not inspect.Parameter.empty}


def test_defaults_of_a_run() -> None:
    config = parse(MINIMAL)
    assert config.run.seed == 1024
    assert config.data.train.arguments()["path"] == Path("faces/train.rec")
    assert (config.head.name, config.schedule.decay.name) == ("softmax", "cosine")
    assert (config.train.precision, config.train.micro_batches, config.train.resume) == ("fp32", 1, "auto")
    assert (config.teacher, config.distill, config.evaluation.sets) == (None, (), ())
    assert (config.optim.clip_norm, config.train.save_every) == (5.0, None)


def test_defaults_are_those_of_the_classes() -> None:
    config = parse(DISTILLED)
    assert config.margin.arguments() == signature_defaults(ArcFace)
    expected = signature_defaults(GroupedKD)
    loss = config.distill[0].loss.arguments()
    assert loss.pop("grouping").arguments() == signature_defaults(CumulativeMass)
    expected.pop("grouping")
    assert loss == expected
    spec = InputSpec(color=config.input.color, mean=config.input.mean, std=config.input.std)
    assert spec == InputSpec()


@pytest.mark.parametrize(("model", "function"), [(OptimSettings, build_sgd), (ScheduleSettings, Schedule)])
def test_defaults_agree_with_the_code(model: type[BaseModel], function: object) -> None:
    defaults = signature_defaults(function)
    assert defaults
    assert {key: model.model_fields[key].default for key in defaults} == defaults


@pytest.mark.parametrize("name", [*BACKBONES, "timm:resnet18"])
def test_every_backbone_can_be_named(name: str) -> None:
    layers = ", layers: [1, 1, 1, 1]" if name in ("iresnet", "ir") else ""
    text = MINIMAL.replace("mobilefacenet", f"{{name: '{name}', embedding_dim: 64, input_size: [112, 96]{layers}}}")
    backbone = parse(text).backbone
    assert backbone.name == name
    assert backbone.arguments()["input_size"] == (112, 96)
    assert "model" not in backbone.arguments()


def test_a_distilled_run() -> None:
    config = parse(
        DISTILLED, "distill.0.loss.grouping={name: top_k, k: 5}", "distill.0.weight=2", "teacher.precision=bf16"
    )
    (term,) = config.distill
    assert isinstance(term, DistillTerm)
    assert term.loss.arguments()["grouping"].arguments() == {"k": 5, "rank_by": "student"}
    assert (term.weight, term.warmup_epochs, term.student_margin, term.teacher_margin) == (2.0, 10, True, True)
    assert config.teacher is not None
    assert (config.teacher.check_samples, config.teacher.precision) == (1000, "bf16")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.seed=-1", "run.seed: expected a number of at least 0, got -1"),
        ("run.seed=4294967296", "run.seed: expected a number below 4294967296, got 4294967296"),
        (
            "data.augment=[{name: flip, probability: 1.5}]",
            "data.augment.0: augmentation flip: probability must lie between 0 and 1, got 1.5",
        ),
        ("data.augment=[mirror]", "data.augment.0.name: unknown name `mirror`"),
        ("data.sampling=random", "data.sampling.name: unknown name `random`; known: `balanced`, `shards`, `uniform`"),
        ("data.train_weight=2", "data.train_weight: goes with `more`, which lists further sets; remove it, or add one"),
        ("data.on_bad_record=ignore", "data.on_bad_record: expected `raise` or `skip`, got the text `ignore`"),
        ("data.train=lmdb", "data.train.name: unknown name `lmdb`; known: `folder`, `recordio`, `webdataset`"),
        ("data.train={name: folder}", "data.train.path: missing, and it has no default"),
        ("data.timeout_seconds=0", "data.timeout_seconds: expected a number above 0, got 0"),
        ("backbone=mobilefacnet", "backbone.name: unknown name `mobilefacnet`; did you mean `mobilefacenet`?"),
        ("backbone.embeding_dim=64", "backbone.embeding_dim: unknown key; did you mean `embedding_dim`?"),
        ("input.std=[1, 0, 1]", "input.std.1: expected a number above 0, got 0"),
        ("input.color=bgra", "input.color: expected `rgb` or `bgr`, got the text `bgra`"),
        ("head=sofmax", "head.name: unknown name `sofmax`; did you mean `softmax`?"),
        ("margin.scale=0", "margin: "),
        (
            "margin.gradient=straight",
            "margin.gradient: expected `exact` or `straight_through`, got the text `straight`",
        ),
        ("optim.lr=0", "optim.lr: expected a number above 0, got 0"),
        ("optim.momentum=1", "optim.momentum: expected a number below 1, got 1"),
        ("optim.clip_norm=0", "optim.clip_norm: expected a number above 0, got 0"),
        ("schedule.decay=step", "schedule.decay.milestones: missing, and it has no default"),
        ("schedule.decay={name: step, milestones: [3, 2]}", "schedule.decay: step schedule: milestones must ascend"),
        ("schedule.warmup_epochs=2", "schedule: warmup_epochs 2 must be below train.epochs, which is 2"),
        ("train.epochs=0", "train.epochs: expected a number of at least 1, got 0"),
        ("train.batchsize=3", "train.batchsize: unknown key; did you mean `batch_size`?"),
        ("train.micro_batches=65", "train.micro_batches: 65 micro-batches cannot share a batch of 64 images"),
        ("train.precision=fp8", "train.precision: expected `fp32`, `bf16` or `fp16`, got the text `fp8`"),
        ("train.resume=", "train.resume: expected text, got nothing"),
        ("train.resume=''", "train.resume: expected text of at least 1 characters, got the text ``"),
        ("evaluation.sets=lfw.bin", "evaluation.sets: expected a list, got the text `lfw.bin`"),
        ("teacher.check_samples=10", "teacher.check_samples: expected a number of at least 1000, got 10"),
        ("teacher.min_accuracy=99", "teacher.min_accuracy: expected a number of at most 1, got 99"),
        ("distill.0.loss.temperature=0", "distill.0.loss: gkd.temperature must be a number above 0, got 0.0"),
        ("distill.0.loss.grouping={name: top_k, k: 0}", "distill.0.loss: "),
        ("distill.0.weight=-1", "distill.0.weight: expected a number of at least 0, got -1"),
        ("distill=[]", "teacher: is set, but `distill` has no loss that uses it: add one, or remove `teacher`"),
        ("teacher=null", "distill: needs `teacher`, which is not set: add it, or remove `distill` to train without"),
    ],
)
def test_refused(override: str, expected: str) -> None:
    (line,) = mistakes(DISTILLED, override)
    assert line.split("  ", 2)[2].startswith(expected)


def test_cross_checks_come_with_the_other_mistakes() -> None:
    text = MINIMAL.replace("lr: 0.1", "lr: fast") + "distill: [{loss: gdk}]\n"
    assert mistakes(text) == [
        "  line 6  optim.lr: expected a number, got the text `fast`",
        "  line 8  distill: needs `teacher`, which is not set: add it, or remove `distill` to train without one",
        "  line 8  distill.0.loss.name: unknown name `gdk`; did you mean `gkd`?",
    ]


def test_cross_checks_survive_any_type() -> None:
    for value in ("3", "[1]", "text", "{a: 1}", "null", "true", ".nan"):
        mistakes(DISTILLED, f"train={value}", f"schedule={value}", "optim=1")
        mistakes(DISTILLED, f"teacher={value}", f"distill={value}", "optim=1")


def test_an_empty_file_names_what_is_missing() -> None:
    lines = mistakes("")
    assert [line.split()[2].rstrip(":") for line in lines] == [
        "backbone", "data", "margin", "optim", "run", "train"
    ]  # fmt: skip
    assert all(line.split("no default: ")[1] for line in lines)


def test_the_resolved_config_loads_back() -> None:
    overrides = ["backbone='timm:resnet18'", "optim.clip_norm=null", "evaluation.sets=[a.bin]"]
    for text in (MINIMAL, DISTILLED):
        config = parse(text, *overrides)
        assert parse(dump_yaml(config)) == config
    assert yaml.safe_load(dump_yaml(parse(DISTILLED)))["distill"][0]["loss"]["grouping"]["threshold"] == 0.93


def every_field(model: type[BaseModel]) -> list[tuple[str, str | None]]:
    fields = [(f"{model.__name__}.{key}", field.description) for key, field in model.model_fields.items()]
    for field in model.model_fields.values():
        for cls in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if inspect.isclass(cls) and issubclass(cls, BaseModel) and cls.__module__ == "gkd.schema":
                fields += every_field(cls)
    return fields


def test_every_key_is_described() -> None:
    fields = every_field(TrainRun)
    assert len(fields) > 45
    assert [name for name, description in fields if not description] == []


class TestJsonSchema:
    validator = jsonschema.Draft202012Validator(json_schema(TrainRun))

    def test_is_valid_itself(self) -> None:
        jsonschema.Draft202012Validator.check_schema(json_schema(TrainRun))

    @pytest.mark.parametrize("text", [MINIMAL, DISTILLED, MINIMAL.replace("mobilefacenet", "'timm:resnet18'")])
    def test_accepts(self, text: str) -> None:
        self.validator.validate(yaml.safe_load(text))
        self.validator.validate(yaml.safe_load(dump_yaml(parse(text))))

    @pytest.mark.parametrize(
        "extra", ["backbone: mobilefacenett", "margin: {name: arcface, m: 1}", "optim: {lr: -1}", "other: 1"]
    )
    def test_refuses(self, extra: str) -> None:
        assert not self.validator.is_valid(yaml.safe_load(MINIMAL) | yaml.safe_load(extra))

    def test_numbers_are_finite(self) -> None:
        text = json.dumps(json_schema(TrainRun), allow_nan=False)
        assert not math.isnan(len(text))


class TestTool:
    def test_writes_a_file(self, tmp_path: Path) -> None:
        out = tmp_path / "train.json"
        assert main([str(out)]) == 0
        assert json.loads(out.read_text()) == json_schema(TrainRun)

    def test_writes_to_standard_output(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 0
        assert json.loads(capsys.readouterr().out) == json_schema(TrainRun)

    def test_an_unwritable_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([str(tmp_path / "no" / "a.json")]) == 2
        assert "error: cannot write" in capsys.readouterr().err

    @pytest.mark.slow
    def test_as_a_script(self, tmp_path: Path) -> None:
        out = tmp_path / "a.json"
        subprocess.run([sys.executable, str(ROOT / "tools" / "schema.py"), str(out)], check=True, cwd=tmp_path)
        assert json.loads(out.read_text())["title"] == "TrainRun"


def test_blocks_that_are_computed_again_are_not_compiled() -> None:
    (line,) = mistakes(DISTILLED, "train={epochs: 20, batch_size: 64, compile: true, checkpoint_activations: true}")
    assert line.split("  ", 2)[2].startswith("train.checkpoint_activations: does not go with `compile`")
    (line,) = mistakes(DISTILLED, "train={epochs: 20, batch_size: 64, compile: true, sync_batch_norm: true}")
    assert line.split("  ", 2)[2].startswith("train.compile: does not go with `sync_batch_norm`")
