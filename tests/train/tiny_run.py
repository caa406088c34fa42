"""A training run small enough for a test: 6 identities of coloured noise at 32 x 32, a sliver of an IResNet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import yaml

from gkd.data import PairSet, RecordWriter

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32
NUM_IDENTITIES = 6


def picture(identity: int, image: int) -> bytes:
    """A JPEG of the identity's own pattern under noise of the image's own."""
    pattern = np.random.default_rng(identity).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    pixels = cv2.resize(pattern, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).astype(np.float64)
    pixels += np.random.default_rng((identity, image)).normal(0, 20, pixels.shape)
    return cv2.imencode(".jpg", np.clip(pixels, 0, 255).astype(np.uint8))[1].tobytes()


def write_data(folder: Path, images_per_identity: int = 8) -> None:
    """Write `train.rec` and `pairs.bin` into `folder`; the pairs are of other identities."""
    with RecordWriter(folder / "train.rec") as writer:
        for identity in range(NUM_IDENTITIES):
            for image in range(images_per_identity):
                writer.write(identity, picture(identity, image))
    images, is_same = [], []
    for pair in range(40):
        same = pair % 2 == 0
        left = 100 + pair % 7
        images += [picture(left, pair), picture(left if same else left + 7, 1000 + pair)]
        is_same.append(same)
    PairSet(images, is_same).save(folder / "pairs.bin")


def config(folder: Path, **sections: object) -> Path:
    """Write a complete config for the data in `folder` and return its path; `sections` are merged into it."""
    plain = {
        "run": {"folder": str(folder / "run"), "seed": 5},
        "data": {"train": {"name": "recordio", "path": str(folder / "train.rec")}, "workers": 0},
        "backbone": {"name": "iresnet18", "embedding_dim": 16, "width_multiplier": 0.0625, "input_size": [SIZE, SIZE]},
        "margin": {"name": "cosface", "scale": 16.0, "margin": 0.2},
        "optim": {"lr": 0.05},
        "schedule": {"decay": {"name": "cosine"}, "warmup_epochs": 0.5},
        "train": {"epochs": 2, "batch_size": 8, "log_every": 1},
        "evaluation": {"sets": [str(folder / "pairs.bin")]},
    }
    for name, section in sections.items():
        merged = plain.get(name)
        plain[name] = {**merged, **section} if isinstance(merged, dict) and isinstance(section, dict) else section
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({name: section for name, section in plain.items() if section is not None}))
    return path


def train(
    *arguments: object,
    num_ranks: int = 1,
    environment: dict[str, str] | None = None,
    start_new_session: bool = False,
) -> subprocess.Popen[str]:
    """Start `tools/train.py`, under torchrun where there are several ranks, with one thread a process."""
    tool = [str(ROOT / "tools" / "train.py"), *(str(argument) for argument in arguments)]
    if num_ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        command = [sys.executable, *launcher, *tool]
    else:
        command = [sys.executable, *tool]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=start_new_session,
    )


def finish(process: subprocess.Popen[str], expected_code: int = 0) -> str:
    """Wait for a run and return its output; fail with it where the exit code is another."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == expected_code, output
    return output
