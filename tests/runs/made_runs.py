"""Run folders written by hand: small, with known figures, hostile where a test wants them to be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CONFIG: dict[str, Any] = {
    "run": {"folder": "runs/x", "seed": 1},
    "data": {"train": {"name": "recordio", "path": "data/celeba/train.rec"}, "workers": 1},
    "backbone": {"name": "mobilefacenet", "embedding_dim": 128, "input_size": [112, 112]},
    "head": {"name": "softmax"},
    "margin": {"name": "cosface", "margin": 0.4, "scale": 32.0},
    "teacher": None,
    "distill": [],
    "optim": {"lr": 0.1},
    "train": {"epochs": 2, "batch_size": 64},
}
DISTILLED = {
    "teacher": {"run": "runs/teachers/iresnet50", "precision": "bf16"},
    "distill": [{"loss": {"name": "gkd", "temperature": 4.0}, "weight": 0.5}],
}
START: dict[str, Any] = {
    "time": "2026-01-02T03:04:05+0000",
    "command": ["tools/train.py", "configs/x.yaml"],
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "torch": "2.6.0",
    "num_ranks": 1,
}
FIRST_SECONDS = 1_700_000_000.0
HOSTILE = "</script><img src=x onerror=alert(1)>&\"'$x^2$"


def line(step: int, **values: float) -> dict[str, Any]:
    """A line of `metrics.jsonl`; in names `__` stands for a slash."""
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return {"step": step, "time": FIRST_SECONDS + step, **named}


def lines(num_steps: int = 40, every: int = 10, *, loss: float = 10.0, accuracy: float = 0.9) -> list[dict[str, Any]]:
    """What a run of two epochs logs: the loss falls to `loss`, the accuracy rises to `accuracy` and sinks by 0.1."""
    logged = []
    for step in range(every, num_steps + 1, every):
        logged.append(
            line(
                step,
                loss__total=loss * num_steps / step,
                stats__target_cosine=step / (2 * num_steps),
                optim__lr=0.1 * (1 - step / num_steps),
                epoch=2 * step / num_steps,
                time__step_seconds=0.5,
                time__images_per_second=100.0 + step,
            )
        )
    logged.append(line(num_steps // 2, eval__lfw__accuracy=accuracy, eval__lfw__accuracy_std=0.01))
    logged.append(line(num_steps, eval__lfw__accuracy=accuracy - 0.1, eval__lfw__accuracy_std=0.01))
    return sorted(logged, key=lambda one: one["step"])


def write_run(
    folder: Path,
    *,
    config: Mapping[str, Any] | str | None = None,
    starts: Any = (START,),
    metrics: Sequence[Mapping[str, Any]] | bytes | None = None,
) -> Path:
    """Write a run folder; `config` are sections laid over `CONFIG`, or the text itself."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = config if isinstance(config, str) else yaml.safe_dump({**CONFIG, **(config or {})}, sort_keys=False)
    (folder / "config.yaml").write_text(merged, encoding="utf-8")
    written = starts if isinstance(starts, str) else json.dumps(list(starts))
    (folder / "run.json").write_text(written, encoding="utf-8")
    logged = lines() if metrics is None else metrics
    if not isinstance(logged, bytes):
        logged = "".join(json.dumps(one) + "\n" for one in logged).encode()
    (folder / "metrics.jsonl").write_bytes(logged)
    return folder
