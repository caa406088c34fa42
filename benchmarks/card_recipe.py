"""The full-size recipe for a few steps: IResNet-100 teaches mobilefacenet over 85,742 classes, on 1 and on 2 ranks.

    python benchmarks/card_recipe.py [--images 96] [--batch-size 32] [--classes 85742] [--json OUT] [--folder DIR]

Real networks, heads, losses and tools; drawn faces, few images whose labels are spread over all classes. The teacher is
trained for as many steps, so it is worth nothing: what is shown is that everything runs at this size, the memory of the
largest process and the time of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from gkd.data import RecordFile
from gkd.data.record_format import frame, pack_record
from gkd.data.synthetic import write_synthetic
from gkd.train.metrics import read_metrics

TEACHER = ROOT / "configs/train/iresnet100_ms1mv2_arcface.yaml"
STUDENT = ROOT / "configs/distill/mobilefacenet_ms1mv2_gkd_from_iresnet100.yaml"


@dataclass(frozen=True)
class Result:
    """One run: the peak resident memory of its largest process, and the median time of its steps after the first."""

    run: str
    ranks: int
    threads_per_rank: int
    steps: int
    peak_gib: float
    step_seconds: float
    images_per_second: float


def main() -> None:
    """Make the data, run the three trainings, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=85742)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="keep data and runs here; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        results = run_all(folder, arguments)
    for result in results:
        print(
            f"{result.run:8} {result.ranks} x {result.threads_per_rank} threads  {result.steps} steps  "
            f"{result.peak_gib:6.2f} GiB  {result.step_seconds:7.2f} s a step  {result.images_per_second:6.2f} img/s"
        )
    if arguments.json:
        values = {"torch": torch.__version__, "machine": platform.processor() or platform.machine(), **vars(arguments)}
        content = {**{key: str(value) for key, value in values.items()}, "results": [asdict(r) for r in results]}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def run_all(folder: Path, arguments: argparse.Namespace) -> list[Result]:
    """Teacher on one process, student on one process, student on two ranks."""
    write_faces(folder, arguments.images, arguments.classes)
    common = [
        f"data.train.path={folder / 'train.rec'}",
        f"train.batch_size={arguments.batch_size}",
        "train.epochs=1",
        "train.log_every=1",
        "schedule.warmup_epochs=0.5",
        "data.workers=1",
        "evaluation.sets=[]",
    ]
    distil = [
        f"teacher.run={folder / 'teacher'}",
        f"teacher.check_pairs={folder / 'faces' / 'validation.bin'}",
        "teacher.min_accuracy=0",
        "teacher.min_train_rank1=0",
        "distill.0.warmup_epochs=0",
    ]
    plan = [str(STUDENT), *common, *distil, f"run.folder={folder / 'student'}", "--dry-run"]
    results = [train("teacher", 1, [str(TEACHER), *common, f"run.folder={folder / 'teacher'}"], folder / "teacher")]
    subprocess.run([sys.executable, str(ROOT / "tools/train.py"), *plan], check=True)
    for ranks in (1, 2):
        run_folder = folder / f"student_{ranks}"
        command = [str(STUDENT), *common, *distil, f"run.folder={run_folder}"]
        results.append(train("student", ranks, command, run_folder))
    return results


def write_faces(folder: Path, num_images: int, num_classes: int) -> None:
    """A .rec without header of `num_images` drawn faces, whose labels run from 0 to `num_classes` - 1."""
    faces = folder / "faces"
    write_synthetic(
        faces, num_identities=num_images, images_per_identity=1, eval_identities=20, eval_pairs=20, seed=0, size=112
    )
    source = RecordFile(faces / "train.rec")
    offsets, content = [], b""
    for index in range(num_images):
        label = index * (num_classes - 1) // (num_images - 1)
        offsets.append((index + 1, len(content)))
        content += frame(pack_record(index + 1, [float(label)], source[index][0]))
    (folder / "train.rec").write_bytes(content)
    (folder / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in offsets), encoding="utf-8")


def train(run: str, ranks: int, arguments: list[str], folder: Path) -> Result:
    """Run tools/train.py on `ranks` processes and read its log and its use of memory."""
    threads = max(1, (os.cpu_count() or 1) // ranks)
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"]
    command = [*launcher, str(ROOT / "tools/train.py"), *arguments]
    print("$", *command, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{run} on {ranks} ranks failed")
    steps, seconds = read_metrics(folder / "metrics.jsonl", "time/step_seconds")
    step_seconds = statistics.median(seconds[1:] or seconds)
    _, rates = read_metrics(folder / "metrics.jsonl", "time/images_per_second")
    return Result(
        run,
        ranks,
        int(environment["OMP_NUM_THREADS"]),
        len(steps),
        usage.ru_maxrss * 1024 / 2**30,
        step_seconds,
        statistics.median(rates[1:] or rates),
    )


if __name__ == "__main__":
    main()
