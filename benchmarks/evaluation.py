"""Time and memory of evaluating three sets of pairs, beside the public way, written here anew.

    python benchmarks/evaluation.py [--share 0.45] [--width 0.0625] [--batch 64] [--threads 1] [--json OUT]

Sets of the sizes of LFW, CFP-FP and AgeDB-30 (12,000, 14,000 and 12,000 images of 112x112 pixels, JPEG of about 5 KB)
are made of drawn faces and noise. Each way runs in a process of its own, on the same files, after the other:

imports  nothing but the imports that all ways need: what torch and OpenCV take by themselves
public   the formulation of the public insightface evaluation: all images of all sets decoded before the first is used,
         into float tensors that hold both flips; batches of 10; the accuracy of 10 folds at each of 400 thresholds by
         NumPy comparisons. Left out in its favour: TAR at a FAR (ten times as many thresholds, interpolation by SciPy)
gkd      evaluate_pairs; it also gives TAR at FARs, AUC and EER
keeping  evaluate_pairs_kept into an empty folder
kept     the same again, in a new process

`public` holds 38,000 images as 10.65 GiB; --share takes the first pairs of each set, so that it fits, and `gkd` runs on
the whole sets as well. The network is a MobileFaceNet of small width that averages squares of two pixels first, so that
the rest shows; its own time is given. Processor time is of all threads of the process; the network's is of the thread
that runs it, so --threads stays 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.data import PairSet, decode_image
from gkd.data.synthetic import SyntheticFaces
from gkd.inference.embed import evaluate_pairs
from gkd.inference.kept_pair_embeddings import evaluate_pairs_kept
from gkd.models import InputSpec, create_backbone

SIZE = (112, 112)
NUM_IMAGES = {"lfw": 12_000, "cfp_fp": 14_000, "agedb_30": 12_000}
PUBLIC_BATCH = 10
JPEG_QUALITY = 92
PEOPLE, PICTURES = 60, 4
HEAD = f"{'way':10} {'images':>7} {'wall s':>8} {'CPU s':>8} {'network':>8} {'rest':>8} {'peak MiB':>9}  accuracies"


def make_sets(folder: Path, share: float) -> None:
    """Write the sets, the two images of a pair being pictures of one drawn person or of two."""
    faces = SyntheticFaces(num_identities=PEOPLE, images_per_identity=PICTURES, seed=1)
    pictures = np.stack([decode_image(faces[index][0], SIZE, "drawn") for index in range(len(faces))]).astype(np.int16)
    generator = np.random.default_rng(1)
    noise = generator.normal(0, 6, (32, *SIZE, 3)).astype(np.int16)
    for name, num_images in NUM_IMAGES.items():
        is_same = np.arange(pairs_of(num_images, share)) % 2 == 0
        images = [_draw(pictures, noise, generator, person) for same in is_same for person in _people(same, generator)]
        PairSet(images, is_same).save(folder / f"{name}.bin")


def pairs_of(num_images: int, share: float) -> int:
    """The number of pairs in a share of a set, of ten equal folds."""
    return max(20, int(num_images * share) // 20 * 10)


def _people(is_same: bool, generator: np.random.Generator) -> tuple[int, int]:
    first, step = int(generator.integers(PEOPLE)), int(generator.integers(1, PEOPLE))
    return first, first if is_same else (first + step) % PEOPLE


def _draw(
    pictures: npt.NDArray[np.int16], noise: npt.NDArray[np.int16], generator: np.random.Generator, person: int
) -> bytes:
    picture = pictures[person * PICTURES + generator.integers(PICTURES)]
    grain = np.roll(noise[generator.integers(len(noise))], generator.integers(112, size=2), axis=(0, 1))
    pixels = np.clip(picture + grain, 0, 255).astype(np.uint8)[..., ::-1]
    return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])


class Network:
    """A backbone whose own processor time is counted, in seconds."""

    def __init__(self, width: float) -> None:
        torch.manual_seed(0)
        self.backbone = create_backbone("mobilefacenet_classic", width_multiplier=width, input_pooling=2).eval()
        self.seconds = 0.0
        self._started = 0.0
        self.backbone.register_forward_pre_hook(self._start)
        self.backbone.register_forward_hook(self._stop)

    def _start(self, module: nn.Module, inputs: Any) -> None:
        self._started = time.thread_time()

    def _stop(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.seconds += time.thread_time() - self._started


def public_load(path: Path) -> tuple[list[torch.Tensor], list[bool]]:
    """All images of a set and their mirror images, decoded, as floats."""
    with path.open("rb") as file:
        images, is_same = pickle.load(file, encoding="bytes")  # noqa: S301 - the public way; the file is our own
    both = [torch.empty((len(images), 3, *SIZE)) for _ in range(2)]
    for index, encoded in enumerate(images):
        pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        planes = pixels.transpose(2, 0, 1)
        for flip in (0, 1):
            both[flip][index] = torch.from_numpy(planes[:, :, ::-1].copy() if flip else planes)
    return both, is_same


@torch.no_grad()
def public_accuracy(backbone: nn.Module, both: Sequence[torch.Tensor], is_same: Sequence[bool]) -> float:
    """Batches of ten, embeddings of both flips kept in double precision, summed, normalised, judged."""
    embeddings = []
    for data in both:
        rows = np.zeros((len(data), 0))
        for start in range(0, len(data), PUBLIC_BATCH):
            end = min(start + PUBLIC_BATCH, len(data))
            batch = data[max(0, end - PUBLIC_BATCH) : end]  # the last batch is filled up with images before it
            output = backbone(((batch / 255) - 0.5) / 0.5).numpy()
            rows = np.zeros((len(data), output.shape[1])) if rows.shape[1] == 0 else rows
            rows[start:end] = output[len(output) - (end - start) :]
        embeddings.append(rows)
    summed = embeddings[0] + embeddings[1]
    unit = summed / np.linalg.norm(summed, axis=1, keepdims=True)
    distances = np.sum(np.square(unit[0::2] - unit[1::2]), 1)
    return public_folds(distances, np.asarray(is_same))


def public_folds(distances: npt.NDArray[np.float64], is_same: npt.NDArray[np.bool_]) -> float:
    """The mean accuracy of ten folds, each threshold of each fold by a comparison of its own."""
    thresholds = np.arange(0, 4, 0.01)
    folds = np.array_split(np.arange(len(distances)), 10)
    accuracies = []
    for fold in folds:
        train = np.setdiff1d(np.arange(len(distances)), fold)
        of_train = [_public_judge(threshold, distances[train], is_same[train]) for threshold in thresholds]
        best = int(np.argmax(of_train))
        of_test = [_public_judge(threshold, distances[fold], is_same[fold]) for threshold in thresholds]  # for its ROC
        accuracies.append(of_test[best])
    return float(np.mean(accuracies))


def _public_judge(threshold: float, distances: npt.NDArray[np.float64], is_same: npt.NDArray[np.bool_]) -> float:
    predicted = np.less(distances, threshold)
    true_accepts = np.sum(np.logical_and(predicted, is_same))
    false_accepts = np.sum(np.logical_and(predicted, np.logical_not(is_same)))
    true_rejects = np.sum(np.logical_and(np.logical_not(predicted), np.logical_not(is_same)))
    false_rejects = np.sum(np.logical_and(np.logical_not(predicted), is_same))
    return float(true_accepts + true_rejects) / (true_accepts + true_rejects + false_accepts + false_rejects)


def run_public(network: Network, paths: Sequence[Path]) -> list[float]:
    """All sets are loaded first, as the public training code does at its start."""
    loaded = [public_load(path) for path in paths]
    return [public_accuracy(network.backbone, both, is_same) for both, is_same in loaded]


def run_gkd(network: Network, paths: Sequence[Path], batch_size: int, folder: Path | None) -> list[float]:
    """All sets are loaded first, as training does; `folder` keeps embeddings."""
    sets = [PairSet.load(path) for path in paths]
    if folder is None:
        results = [evaluate_pairs(network.backbone, InputSpec(), each, batch_size=batch_size) for each in sets]
    else:
        results = [
            evaluate_pairs_kept(network.backbone, InputSpec(), each, batch_size=batch_size, folder=folder)
            for each in sets
        ]
    return [result.accuracy for result in results]


def peak_mib() -> float:
    """The most memory that this process has had resident. Unlike `ru_maxrss`, not that of the process it came from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def measure(way: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one way in this process, on the sets of `folder`."""
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    if way == "imports":
        return {"peak_mib": peak_mib()}
    network = Network(arguments.width)
    network.backbone(torch.zeros(2, 3, *SIZE))  # what the first pass sets up is not counted
    network.seconds = 0.0
    paths = [folder / f"{name}.bin" for name in NUM_IMAGES]
    wall, processor = time.perf_counter(), time.process_time()
    if way == "public":
        accuracies = run_public(network, paths)
    else:
        accuracies = run_gkd(network, paths, arguments.batch, None if way == "gkd" else folder / "kept")
    return {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - processor,
        "network_seconds": network.seconds,
        "peak_mib": peak_mib(),
        "accuracies": accuracies,
    }


def in_fresh_process(way: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (way, folder, arguments))


def compare(ways: Sequence[str], share: float, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Make sets of a share, run the ways on them, and print a line each."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(make_sets, (folder, share))
        num_images = sum(2 * pairs_of(each, share) for each in NUM_IMAGES.values())
        num_bytes = sum(path.stat().st_size for path in folder.glob("*.bin"))
        for way in ways:
            row = {"way": way, "images": num_images, **in_fresh_process(way, folder, arguments)}
            row["bytes_per_image"] = num_bytes / num_images
            print_row(row)
            rows.append(row)
    return rows


def print_row(row: dict[str, Any]) -> None:
    if row["way"] == "imports":
        print(f"{'imports':10} {'':>7} {'':>8} {'':>8} {'':>8} {'':>8} {row['peak_mib']:9.0f}", flush=True)
        return
    rest = row["cpu_seconds"] - row["network_seconds"]
    seconds = f"{row['wall_seconds']:8.1f} {row['cpu_seconds']:8.1f} {row['network_seconds']:8.1f} {rest:8.1f}"
    accuracies = " ".join(f"{accuracy:.4f}" for accuracy in row["accuracies"])
    print(f"{row['way']:10} {row['images']:7,d} {seconds} {row['peak_mib']:9.0f}  {accuracies}", flush=True)


def main() -> None:
    """Make the sets, measure every way, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.45, help="of each set, for the comparison (default 0.45)")
    parser.add_argument("--width", type=float, default=0.0625, help="width multiplier of the network (default 0.0625)")
    parser.add_argument("--batch", type=int, default=64, help="images a forward pass of gkd (default 64)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, network of width {arguments.width}")
    print(HEAD)
    rows = compare(("imports", "public", "gkd", "keeping", "kept"), arguments.share, arguments)
    if arguments.share < 1:
        rows += compare(("gkd",), 1.0, arguments)
    print(f"{rows[-1]['bytes_per_image']:,.0f} bytes an image")
    if arguments.json:
        versions = {"torch": torch.__version__, "opencv": cv2.__version__, "python": platform.python_version()}
        settings = {key: value for key, value in vars(arguments).items() if key != "json"}
        content = {"rows": rows, "settings": settings, "versions": versions}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
