"""What a run has on disk, read without the project's own checkpoint code: for tests that judge that code."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from gkd.build_teacher import HEAD_FILE, STUDENT_FILE
from gkd.models import load_head, load_student

_STEP = re.compile(r"(?:\.replaced-)?step_(\d+)")


def whole_checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints by step whose files all have the size and digest that `complete.json` gives."""
    folder = run / "checkpoints"
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        matched = _STEP.fullmatch(path.name)
        if matched and _is_whole(path):
            found[int(matched[1])] = path  # `step_` sorts after `.replaced-step_`, which it stands before
    return found


def newest_step(run: Path) -> int:
    """The step of the newest whole checkpoint, 0 where there is none."""
    return max(whole_checkpoints(run), default=0)


def _is_whole(path: Path) -> bool:
    try:
        files = json.loads((path / "complete.json").read_text())["files"]
        return all(
            (path / name).stat().st_size == record["size"]
            and hashlib.sha256((path / name).read_bytes()).hexdigest() == record["sha256"]
            for name, record in files.items()
        )
    except (OSError, ValueError):
        return False


def last_logged_step(run: Path) -> int:
    """The step of the last line of `metrics.jsonl`, 0 where there is none; a line being written is passed over."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except ValueError:
            continue
    return 0


def logged(run: Path) -> list[dict[str, float]]:
    """Every line of `metrics.jsonl` without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(("time", "memory"))} for line in lines]


def final_tensors(run: Path, scratch: Path) -> dict[str, Tensor]:
    """The tensors of the weights for use and of the newest checkpoint."""
    backbone, _, _ = load_student(run / STUDENT_FILE)
    tensors = {f"student/{name}": tensor for name, tensor in backbone.state_dict().items()}
    tensors["head"] = load_head(run / HEAD_FILE)[0]
    dcp_to_torch_save(whole_checkpoints(run)[newest_step(run)], scratch)
    stored = torch.load(scratch, weights_only=True)
    scratch.unlink()
    return {**tensors, **{f"checkpoint/{name}": tensor for name, tensor in flatten(stored).items()}}


def flatten(nested: dict, prefix: str = "") -> dict[str, Tensor]:
    """The leaves of nested dicts by their joined names."""
    flat: dict[str, Tensor] = {}
    for name, value in nested.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def differences(reference: Path, run: Path, scratch: Path) -> list[str]:
    """What of two finished runs is not equal to the last bit: tensors, and figures logged at each step."""
    ours, theirs = final_tensors(reference, scratch), final_tensors(run, scratch)
    names = sorted(ours.keys() | theirs.keys())
    found = [name for name in names if not _equal(ours.get(name), theirs.get(name))]
    left, right = logged(reference), logged(run)
    if len(left) != len(right):
        found.append(f"{len(left)} lines of metrics.jsonl against {len(right)}")
    return found + [f"the figures of step {a['step']}" for a, b in zip(left, right, strict=False) if a != b]


def _equal(left: Tensor | None, right: Tensor | None) -> bool:
    # Bits, not values: a NaN equals itself, and -0.0 is not 0.0.
    return (
        left is not None
        and right is not None
        and (left.dtype, left.shape) == (right.dtype, right.shape)
        and left.contiguous().numpy().tobytes() == right.contiguous().numpy().tobytes()
    )
