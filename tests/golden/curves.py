"""Golden loss curves: 30 steps of a classification run and of two Grouped KD runs, as they were when last recorded.

    OMP_NUM_THREADS=1 python -m tests.golden.curves

records them anew into `tests/golden/*.json`. Do so only where a change is meant to change what is computed, and say in
the commit which; a difference that nobody meant is what `tests/train/test_golden.py` is there to find.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from gkd.cli import train
from tests.train.run_state import logged
from tests.train.tiny_run import config, write_data

FOLDER = Path(__file__).resolve().parent
NUM_STEPS = 30
# Bits are compared between equal environments; elsewhere figures may differ by rounding, which 30 steps let grow.
RELATIVE_TOLERANCE = 1e-3
KEPT = ("loss/", "stats/", "optim/")


def environment() -> dict[str, object]:
    """What decides the bits of a run: the versions that compute, the CPU, and how the work is shared out."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_model": cpu_model(),
        "num_ranks": 1,
        "num_threads": torch.get_num_threads(),
    }


def cpu_model() -> str:
    """The name that the processor gives itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def curves(folder: Path) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """Run all in `folder`, one after the other; gives each one's name and its figures, one dict a step."""
    write_data(folder)
    loop = {"epochs": 5, "batch_size": 8, "log_every": 1, "save_every": NUM_STEPS}
    _train(config(folder, train=loop, run={"folder": str(folder / "classification"), "seed": 5}))
    yield "classification", _figures(folder / "classification")
    # Its teacher is the network just trained, whose weights the first curve vouches for.
    taught = {
        "teacher": {
            "run": str(folder / "classification"),
            "check_pairs": str(folder / "pairs.bin"),
            "min_accuracy": 0.3,
            "min_train_rank1": 0.1,
        },
        "distill": [{"loss": {"name": "gkd", "grouping": {"name": "cumulative_mass"}}, "warmup_epochs": 2}],
        "run": {"folder": str(folder / "gkd"), "seed": 6},
    }
    _train(config(folder, train=loop, **taught))
    yield "gkd", _figures(folder / "gkd")
    sharded = taught | {"head": {"name": "sharded"}, "run": {"folder": str(folder / "gkd_sharded"), "seed": 6}}
    _train(config(folder, train=loop, **sharded))
    yield "gkd_sharded", _figures(folder / "gkd_sharded")


def _train(path: Path) -> None:
    code = train.main([str(path)])
    assert code == 0, f"the run of {path} ended with {code}"


def _figures(run: Path) -> list[dict[str, float]]:
    steps = [line for line in logged(run) if "loss/total" in line]
    return [{name: value for name, value in line.items() if name.startswith(KEPT)} for line in steps]


def read(name: str) -> dict[str, object]:
    """A recorded curve: its `environment` and its `steps`."""
    recorded: dict[str, object] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return recorded


def write(name: str, steps: list[dict[str, float]], folder: Path = FOLDER) -> None:
    """Record a curve. JSON writes the shortest decimal that reads back as the same float: no bit is lost."""
    lines = ",\n".join(f"    {json.dumps(step, sort_keys=True)}" for step in steps)
    text = f'{{\n  "environment": {json.dumps(environment())},\n  "steps": [\n{lines}\n  ]\n}}\n'
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        for curve_name, curve_steps in curves(Path(temporary)):
            write(curve_name, curve_steps)
            print(f"recorded {FOLDER / curve_name}.json: {len(curve_steps)} steps")
