"""Which runs a study consists of: each one's complete training config, all checked before anything trains.

Settings are laid over the base in this order: the control's chosen trial, the method's teacher, losses and overrides,
the method's trial, and last what the study itself decides (folder, seed, no evaluation during the run).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gkd.core.config import load_config, to_plain
from gkd.core.config_model import show
from gkd.core.errors import ConfigError
from gkd.core.overrides import COMMAND_LINE, apply_overrides
from gkd.core.yaml_lines import Document, KeyPath, Mistake, YamlError, dotted, printable, read_yaml
from gkd.schema import TrainRun
from gkd.study_schema import CONTROL, StudyRun

MAX_BASE_BYTES = 2**20
MAX_MISTAKES_SHOWN = 50


@dataclass(frozen=True)
class Setting:
    """One `key.path: value` of a run and the place in the study file that it comes from."""

    key: str
    value: Any
    origin: KeyPath

    def as_override(self) -> str:
        """As the command line of `tools/train.py` would have it; JSON is YAML."""
        return f"{self.key}={json.dumps(to_plain(self.value), ensure_ascii=False)}"


@dataclass(frozen=True)
class PlannedRun:
    """One training run of a study.

    `name` is its folder in the study's folder; `trial` and `control_trial` count from 0; `trial` is the control's own
    where `method` is the control.
    """

    name: str
    method: str
    control_trial: int
    trial: int
    seed: int
    config: TrainRun
    changes: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.run.folder

    @property
    def is_distilled(self) -> bool:
        """Whether the run has a teacher."""
        return self.config.teacher is not None


class StudyPlan:
    """All runs of a study. Making one checks every run that the study could come to.

    Raises:
        ConfigError: a mistake in the study file or in the base; all are listed, each with its line.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        self.study = load_config(path, StudyRun, overrides)
        self.folder = self.study.study.folder
        self._path = path
        self._document = read_yaml(path.read_text(encoding="utf-8-sig"))
        apply_overrides(self._document, overrides)
        self._base_text = _read_base(self.study.study.base)
        self._runs: dict[tuple[str, int, int], PlannedRun] = {}
        self._check()

    @property
    def methods(self) -> tuple[str, ...]:
        """The control and the methods, in the order of the file."""
        return (CONTROL, *self.study.methods)

    def trials(self, method: str) -> tuple[Mapping[str, Any], ...]:
        """The settings to try of a method."""
        return self.study.control.trials if method == CONTROL else self.study.methods[method].trials

    def tuning_runs(self, method: str, control_trial: int = 0) -> list[PlannedRun]:
        """The trials of a method; none where there is nothing to choose."""
        if len(self.trials(method)) == 1:
            return []
        return [self._tuning_run(method, control_trial, trial) for trial in range(len(self.trials(method)))]

    def final_runs(self, method: str, control_trial: int, trial: int) -> list[PlannedRun]:
        """The runs of a method that are scored on the test sets, one a seed."""
        return [
            self._run(f"final/{method}_seed{seed}", method, control_trial, trial, seed)
            for seed in self.study.study.seeds
        ]

    def _tuning_run(self, method: str, control_trial: int, trial: int) -> PlannedRun:
        name = f"tuning/{method}-{trial + 1}"
        return self._run(name, method, trial if method == CONTROL else control_trial, trial, self.study.tuning.seed)

    def _run(self, name: str, method: str, control_trial: int, trial: int, seed: int) -> PlannedRun:
        key = (name, control_trial, trial)
        if key not in self._runs:
            settings = list(self._settings(method, control_trial, trial))
            config, mistakes = self._build(name, [*settings, *self._fixed_settings(name, seed)])
            assert config is not None, mistakes  # __init__ built every combination
            changes = {setting.key: to_plain(setting.value) for setting in settings}
            self._runs[key] = PlannedRun(name, method, control_trial, trial, seed, config, changes)
        return self._runs[key]

    def _settings(self, method: str, control_trial: int, trial: int) -> Iterator[Setting]:
        yield from _entries(self.study.control.trials[control_trial], (CONTROL, "trials", control_trial))
        if method == CONTROL:
            return
        settings = self.study.methods[method]
        if settings.distill:
            if self.study.teacher is not None:
                yield Setting("teacher", self.study.teacher, ("teacher",))
            for key, value in settings.teacher.items():
                yield Setting(f"teacher.{key}", value, ("methods", method, "teacher", key))
            yield Setting("distill", settings.distill, ("methods", method, "distill"))
        yield from _entries(settings.overrides, ("methods", method, "overrides"))
        yield from _entries(settings.trials[trial], ("methods", method, "trials", trial))

    def _fixed_settings(self, name: str, seed: int) -> list[Setting]:
        values = {"run.folder": str(self.folder / name), "run.seed": seed, "train.resume": "auto"}
        # Runs are scored by the study alone, after their end: no figure of a test set or split can leak into a run.
        values["evaluation.sets"] = []
        return [Setting(key, value, ("study",)) for key, value in values.items()]

    def _check(self) -> None:
        found: dict[Mistake, None] = {}
        for control_trial in range(len(self.study.control.trials)):
            for method in self.methods:
                for trial in [control_trial] if method == CONTROL else range(len(self.trials(method))):
                    name = f"tuning/{method}-{trial + 1}"
                    settings = self._settings(method, control_trial, trial)
                    fixed = self._fixed_settings(name, self.study.tuning.seed)
                    found |= dict.fromkeys(self._build(name, [*settings, *fixed])[1])
        if found:
            ordered = sorted(found, key=lambda mistake: (mistake.line == COMMAND_LINE, mistake))
            lines = [str(mistake) for mistake in ordered[:MAX_MISTAKES_SHOWN]]
            if len(ordered) > MAX_MISTAKES_SHOWN:
                lines.append(f"  and {len(ordered) - MAX_MISTAKES_SHOWN} more")
            raise ConfigError("\n".join([f"invalid study {self._path}:", *lines]))

    def _build(self, name: str, settings: Sequence[Setting]) -> tuple[TrainRun | None, list[Mistake]]:
        """The run's config, or None and what is wrong, told by places in the study file."""
        base = self.study.study.base
        try:
            document = read_yaml(self._base_text)
        except YamlError as error:
            raise ConfigError(f"invalid config {base}:\n{error.mistake}") from None
        mistakes = [replace(mistake, text=f"in {base}: {mistake.text}") for mistake in document.mistakes]
        mistakes += self._base_mistakes(document)
        for setting in settings:
            known = len(document.mistakes)
            apply_overrides(document, [setting.as_override()])
            mistakes += [self._mistake(setting, "", entry.text) for entry in document.mistakes[known:]]
        try:
            config = TrainRun.model_validate(_lists_to_tuples(document.value))
        except ValidationError as error:
            entries = error.errors(include_url=False, include_input=False)
            return None, mistakes + [self._located(name, document, settings, e["loc"], e["msg"]) for e in entries]
        return (None if mistakes else config), mistakes

    def _base_mistakes(self, document: Document) -> list[Mistake]:
        value = document.value if isinstance(document.value, dict) else {}
        given = [key for key in ("teacher", "distill") if value.get(key)]
        if not given:
            return []
        text = f"{self.study.study.base} sets `{given[0]}`; the base is the control, which learns from no teacher"
        return [Mistake(self._document.line_of(("study", "base")), "study.base", text)]

    def _located(self, name: str, document: Document, settings: Sequence[Setting], path: KeyPath, text: str) -> Mistake:
        """A mistake at `path` of the run's config, at the line that set it."""
        keys = [str(key) for key in path]
        for setting in reversed(settings):
            own = setting.key.split(".")
            if document.line_of(path) == COMMAND_LINE and own == keys[: len(own)]:
                return self._mistake(setting, ".".join(keys[len(own) :]), text)
        line = self._document.line_of(("study", "base"))
        where = f"line {document.line_of(path)} of" if document.line_of(path) else "in"
        return Mistake(line, "study.base", f"{where} {self.study.study.base}, as in {name}: {dotted(path)}: {text}")

    def _mistake(self, setting: Setting, inside: str, text: str) -> Mistake:
        path = dotted(setting.origin) + (f".{printable(inside)}" if inside else "")
        return Mistake(self._line_of(setting.origin, inside), path, printable(text, 1000))

    def _line_of(self, origin: KeyPath, inside: str) -> int:
        """The line of the nearest known key; `inside` is dotted, and digits in it are list positions."""
        rest = [int(key) if key.isdigit() else key for key in inside.split(".") if key]
        return self._document.line_of((*origin, *rest))


def describe_changes(changes: Mapping[str, Any]) -> str:
    """Settings as one line of text; the distillation terms by their names."""
    parts = []
    for key, value in changes.items():
        if key == "distill" and isinstance(value, list):
            value = "+".join(_loss_name(term) for term in value)
        elif key == "teacher":
            continue
        parts.append(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    return " ".join(parts) or "as the base"


def _loss_name(term: Mapping[str, Any]) -> str:
    loss = term.get("loss")
    return str(loss.get("name") if isinstance(loss, Mapping) else loss)


def _entries(overrides: Mapping[str, Any], origin: KeyPath) -> Iterator[Setting]:
    for key, value in overrides.items():
        yield Setting(key, value, (*origin, key))


def _read_base(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BASE_BYTES + 1)
        if len(content) > MAX_BASE_BYTES:
            raise ConfigError(f"study.base: {path} is larger than {MAX_BASE_BYTES} bytes; is it a config?")
        text = content.decode("utf-8-sig")
        value = read_yaml(text).value
    except OSError as error:
        raise ConfigError(f"study.base: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"study.base: {path} is not UTF-8 text") from None
    except YamlError as error:
        raise ConfigError(f"invalid config {path}:\n{error.mistake}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"study.base: {path} must be a mapping of keys at the top, got {show(value)}")
    return text


def _lists_to_tuples(value: Any) -> Any:
    """Strict models take tuples for lists."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(entry) for key, entry in value.items()}
    return tuple(_lists_to_tuples(entry) for entry in value) if isinstance(value, list) else value
