"""Every key of a study file: a fair comparison of training methods, run by `tools/study.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gkd.core.config import ConfigModel, FilePath

CONTROL = "control"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Overrides = dict[str, Any]


class StudySettings(ConfigModel):
    """Where the study lives and how its runs are started."""

    folder: FilePath = Field(description="folder of the study: configs, runs, report")
    base: FilePath = Field(description="training config of the control, without distillation; every run starts from it")
    seeds: tuple[Seed, ...] = Field(min_length=1, description="seeds of the final runs, named before anything is run")
    jobs: int = Field(default=1, ge=1, le=256, description="runs at a time")

    @classmethod
    def cross_checks(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Every seed counts once."""
        seeds = raw.get("seeds")
        if isinstance(seeds, tuple) and len({repr(seed) for seed in seeds}) < len(seeds):
            yield "seeds", "a seed is named twice; a run of it would count double"


class TuningSettings(ConfigModel):
    """What settings are chosen on: other identities than the test sets hold."""

    pairs: FilePath = Field(description="pair set (.bin) of held-out identities that trials are scored on")
    seed: Seed = Field(description="seed of all trials, none of the final ones")
    flip: bool = Field(default=True, description="add the embedding of the mirrored image")


class TestSettings(ConfigModel):
    """What final runs are scored on, once, at the end."""

    sets: tuple[FilePath, ...] = Field(min_length=1, description="pair sets (.bin); each is named by its file")
    flip: bool = Field(default=True, description="add the embedding of the mirrored image")

    @classmethod
    def cross_checks(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Sets are told apart by their names."""
        names = [Path(entry).stem for entry in _paths(raw.get("sets"))]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield "sets", f"two sets are named `{name}`; rename one of the files"


class ControlSettings(ConfigModel):
    """The method without distillation. What is tuned here every other method inherits."""

    trials: tuple[Overrides, ...] = Field(
        default=({},), min_length=1, description="settings to try, each a mapping of `key.path: value` over the base"
    )


class MethodSettings(ConfigModel):
    """A method: what it adds to the control, and the settings of its own that are tried."""

    distill: tuple[Overrides, ...] = Field(
        default=(), description="its distillation terms, as the `distill` of a training config; none needs no teacher"
    )
    teacher: Overrides = Field(default={}, description="keys laid over the study's `teacher`, for this method alone")
    overrides: Overrides = Field(default={}, description="`key.path: value` over the base, in all runs of this method")
    trials: tuple[Overrides, ...] = Field(
        default=({},), min_length=1, description="settings to try, each a mapping of `key.path: value`"
    )


class StudyRun(ConfigModel):
    """A study: one control and the methods that are compared with it."""

    study: StudySettings = Field(description="where the study lives")
    tuning: TuningSettings = Field(description="what settings are chosen on")
    test: TestSettings = Field(description="what final runs are scored on")
    teacher: Overrides | None = Field(
        default=None, description="the `teacher` of a training config, for every method that distils"
    )
    control: ControlSettings = Field(default=ControlSettings(), description="the method without distillation")
    methods: dict[str, MethodSettings] = Field(min_length=1, description="the methods by name")

    @classmethod
    def cross_checks(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The test sets and the final seeds take no part in choosing; a method's name can be a folder."""
        yield from _tuning_mistakes(raw)
        methods = raw.get("methods")
        methods = methods if isinstance(methods, Mapping) else {}
        for name in methods:
            if name == CONTROL:
                yield "methods", f"`{CONTROL}` is the method without distillation, which is there already; rename it"
            elif not NAME.fullmatch(str(name)):
                yield "methods", f"the name `{name}` must be 1 to 64 letters, digits or `_.+-`: it names folders"
        if raw.get("teacher") is not None and not any(_distils(method) for method in methods.values()):
            yield "teacher", "is set, but no method has a `distill` that uses it"


def _tuning_mistakes(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    pairs, seed = _at(raw, "tuning", "pairs"), _at(raw, "tuning", "seed")
    seeds = _at(raw, "study", "seeds")
    tests = _paths(_at(raw, "test", "sets"))
    if isinstance(pairs, str | Path) and Path(pairs).resolve() in [Path(test).resolve() for test in tests]:
        yield (
            "tuning",
            f"pairs: {pairs} is also one of test.sets; settings chosen on a test set make its figures worthless: "
            "choose them on held-out identities of the training data",
        )
    if isinstance(seeds, tuple) and seed in seeds:
        yield "tuning", f"seed: {seed} is also one of study.seeds; the final runs must be others than the tuned ones"


def _distils(method: Any) -> bool:
    return isinstance(method, Mapping) and bool(method.get("distill"))


def _at(raw: Mapping[str, Any], section: str, key: str) -> Any:
    values = raw.get(section)
    return values.get(key) if isinstance(values, Mapping) else None


def _paths(entries: Any) -> Sequence[str | Path]:
    return [entry for entry in entries if isinstance(entry, str | Path)] if isinstance(entries, tuple) else []
