"""Label noise put into clean data: how much of it class centres find, and what training without it is worth.

    python benchmarks/label_noise.py FACES --network NET.onnx [--mean …] [--std …] [--color rgb] [--shares 0.1 0.2 0.4]
        [--train --pairs lfw.bin --config configs/study/celeba_control.yaml] [--json OUT] [--folder DIR]

A share of the images, drawn by a seed, gets the label of another identity: of any, all equally likely, or of the next
one, so that all strangers in an identity are one person, who pulls its centre. The table says how many of them are left
out (recall), and how many of those left out had been changed (precision), for thresholds on the cosine, for the margin
to other identities, and for one round and three. An image that the data themselves file under the wrong person counts
against precision, and so does one that is only hard to recognise.

With --train, the config is trained on the clean, the noisy and the cleaned data, once for each seed, and evaluated on
the pairs, without mirror images; then the network trained on the noisy data takes the place of NET to find the noise
in them.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from gkd.core.log import set_up_logging
from gkd.data import RecordFile, RecordWriter
from gkd.data.identities import Faces, open_faces
from gkd.data.rec_clean import write_clean
from gkd.inference.class_centres import find_class_centres
from gkd.inference.clean import NoiseRule, find_noise
from gkd.inference.embedding_store import EmbeddingStore
from gkd.models import Backbone, InputSpec, OnnxBackbone, load_student

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
MARGINS = (0.0, 0.1, 0.2)
ROUNDS = (1, 3)
TRAIN_SHARE = 0.2
TRAIN_RULE = NoiseRule(min_cosine=0.2, margin=0.1)
NOISE_SEED = 0
KINDS = ("uniform", "one_other")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Detection:
    """What a rule found in the data of which `share` of the labels were changed."""

    network: str
    kind: str
    share: float
    rule: str
    rounds: int
    left_out: int
    precision: float
    recall: float


@dataclass(frozen=True)
class Run:
    """One training: on which data, and the accuracy on the pairs."""

    data: str
    seed: int
    num_images: int
    accuracy: float
    tar_at_far_1e2: float


def main() -> None:
    """Find the noise at each share, train where asked, print the tables and write the JSON."""
    arguments = _parse()
    set_up_logging()
    torch.set_num_threads(arguments.threads)
    network, spec = _network(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        source = open_faces(arguments.faces)
        store = embed(folder / "centres", network, spec, source)
        detections = detect("given", store, source, 0.0, "none")
        for kind, share in itertools.product(KINDS, arguments.shares):
            detections += detect("given", store, source, share, kind)
        _show_detections(detections)
        runs: list[Run] = []
        if arguments.train:
            runs = train_all(folder, source, store, arguments)
            _show_runs(runs)
            own = detect_with_own(folder, source, arguments.seeds[0])
            _show_detections(own)
            detections += own
    if arguments.json:
        _write_json(arguments, source, detections, runs)


def noisy_labels(source: Faces, share: float, kind: str) -> Ints:
    """The labels (n,) of the source, a share of them changed.

    uniform: to any other identity. one_other: to the next identity, so that an identity's strangers are one person.
    """
    labels = np.array(source.labels)
    rng = np.random.default_rng(NOISE_SEED)
    chosen = rng.choice(len(labels), round(share * len(labels)), replace=False)
    others = rng.integers(0, source.num_identities - 1, len(chosen))
    next_ones = (labels[chosen] + 1) % source.num_identities
    labels[chosen] = next_ones if kind == "one_other" else others + (others >= labels[chosen])
    return labels


def write_noisy(source: Faces, path: Path, labels: Ints) -> RecordFile:
    """A .rec of all images in their order, with these labels."""
    with RecordWriter(path, layout="plain", identity_names=source.identity_names) as writer:
        for index in range(len(source)):
            writer.write(int(labels[index]), source[index][0])
    return RecordFile(path)


def embed(folder: Path, network: Backbone, spec: InputSpec, faces: Faces) -> EmbeddingStore:
    """The embeddings of the faces, made where they are missing."""
    return find_class_centres(folder, network, spec, faces, device=torch.device("cpu")).store


def relabelled(store: EmbeddingStore, labels: Ints) -> EmbeddingStore:
    """The same embeddings under other labels: what images look like does not depend on them, so one pass serves all."""
    other = copy.copy(store)
    other.labels = labels.astype(np.int32)
    return other


def detect(network: str, store: EmbeddingStore, source: Faces, share: float, kind: str) -> list[Detection]:
    """Precision and recall of each rule in noise of one kind."""
    labels = noisy_labels(source, share, kind)
    noisy, is_changed = relabelled(store, labels), labels != source.labels
    rules = [(f"cosine < {limit:g}", {"min_cosine": limit}) for limit in THRESHOLDS]
    rules += [(f"margin > {margin:g}", {"margin": margin}) for margin in MARGINS]
    rules += [(_words(TRAIN_RULE), {"min_cosine": TRAIN_RULE.min_cosine, "margin": TRAIN_RULE.margin})]
    found = []
    for words, values in rules:
        for rounds in ROUNDS:
            is_noise = find_noise(noisy, source.num_identities, NoiseRule(**values, rounds=rounds)).is_noise
            right = int((is_noise & is_changed).sum())
            precision, recall = right / max(1, int(is_noise.sum())), right / max(1, int(is_changed.sum()))
            found.append(Detection(network, kind, share, words, rounds, int(is_noise.sum()), precision, recall))
    return found


def train_all(folder: Path, source: Faces, store: EmbeddingStore, arguments: argparse.Namespace) -> list[Run]:
    """Train on clean, noisy and cleaned data, one run after the other."""
    labels = noisy_labels(source, TRAIN_SHARE, "uniform")
    noisy = write_noisy(source, folder / "noisy.rec", labels)
    cleaned = folder / "cleaned.rec"
    cleaned.unlink(missing_ok=True)
    write_clean(noisy, cleaned, find_noise(relabelled(store, labels), source.num_identities, TRAIN_RULE).is_noise)
    clean = write_noisy(source, folder / "clean.rec", np.array(source.labels))
    data = {"clean": clean.path, "noisy": noisy.path, "cleaned": cleaned}
    return [train(folder, name, data[name], seed, arguments) for seed in arguments.seeds for name in data]


def train(folder: Path, name: str, data: Path, seed: int, arguments: argparse.Namespace) -> Run:
    """Train the config on `data` and evaluate it, unless it is there from an interrupted benchmark."""
    run_folder, figures = folder / f"run_{name}_{seed}", folder / f"run_{name}_{seed}.json"
    if not figures.exists():
        overrides = [f"run.folder={run_folder}", f"run.seed={seed}", f"data.train.path={data}"]
        _tool("train.py", str(arguments.config), *overrides)
        pairs = ["--data", str(arguments.pairs), "--no-flip"]
        _tool("eval.py", "--weights", str(run_folder), *pairs, "--json", str(figures))
    (result,) = json.loads(figures.read_text(encoding="utf-8"))["models"][0]["sets"].values()
    return Run(name, seed, len(RecordFile(data)), result["accuracy"], result["tar_at_far"]["1e-2"])


def detect_with_own(folder: Path, source: Faces, seed: int) -> list[Detection]:
    """The noise as the network sees it that was trained on it."""
    network, spec, _ = load_student(folder / f"run_noisy_{seed}" / "weights" / "student.pt")
    store = embed(folder / f"centres_own_{seed}", network, spec, source)
    return detect("trained on the noise", store, source, TRAIN_SHARE, "uniform")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path, help="a .rec or a folder of identities with labels that are right")
    parser.add_argument(
        "--network", type=Path, required=True, help="an .onnx file, or a student.pt, which knows its input"
    )
    parser.add_argument("--color", choices=("rgb", "bgr"), default="rgb")
    parser.add_argument("--mean", type=float, nargs=3, default=(123.675, 116.28, 103.53))
    parser.add_argument("--std", type=float, nargs=3, default=(58.395, 57.12, 57.375))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", action="store_true", help="also train (nine runs)")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/study/celeba_control.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1024, 1, 2])
    parser.add_argument("--pairs", type=Path, help="a .bin, with --train")
    parser.add_argument("--folder", type=Path, help="keep data and runs here; default: a temporary folder")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.train and arguments.pairs is None:
        parser.error("--train needs --pairs FILE.bin")
    return arguments


def _network(arguments: argparse.Namespace) -> tuple[Backbone, InputSpec]:
    if arguments.network.suffix != ".onnx":
        network, spec, _ = load_student(arguments.network)
        return network, spec
    spec = InputSpec(color=arguments.color, mean=tuple(arguments.mean), std=tuple(arguments.std))
    return OnnxBackbone(path=arguments.network), spec


def _tool(name: str, *arguments: str) -> None:
    print("$", name, *arguments, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    subprocess.run([sys.executable, str(ROOT / "tools" / name), *arguments], env=environment, check=True)


def _words(rule: NoiseRule) -> str:
    return f"cosine < {rule.min_cosine:g} or margin > {rule.margin:g}"


def _show_detections(detections: list[Detection]) -> None:
    print("\n| network | labels changed | to | rule | rounds | left out | precision | recall |")
    print("|---|---|---|---|---|---|---|---|")
    for item in detections:
        rates = f"{100 * item.precision:.1f} % | {100 * item.recall:.1f} %" if item.share else "- | -"
        how = f"{item.network} | {100 * item.share:.0f} % | {item.kind}"
        print(f"| {how} | {item.rule} | {item.rounds} | {item.left_out:,} | {rates} |", flush=True)


def _show_runs(runs: list[Run]) -> None:
    seeds = sorted({run.seed for run in runs}, key=[run.seed for run in runs].index)
    print(f"\n| data | images | {' | '.join(f'seed {seed}' for seed in seeds)} | mean ± std | TAR@FAR=1e-2 |")
    print("|---|---|" + "---|" * (len(seeds) + 2))
    for name in ("clean", "noisy", "cleaned"):
        own = [run for run in runs if run.data == name]
        accuracies = [100 * run.accuracy for run in own]
        each = " | ".join(f"{value:.2f}" for value in accuracies)
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(own) > 1 else ""
        tar = 100 * statistics.mean(run.tar_at_far_1e2 for run in own)
        print(f"| {name} | {own[0].num_images:,} | {each} | {statistics.mean(accuracies):.2f}{spread} | {tar:.2f} |")


def _write_json(arguments: argparse.Namespace, source: Faces, detections: list[Detection], runs: list[Run]) -> None:
    values = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        **{key: str(value) for key, value in vars(arguments).items()},
        "num_images": len(source),
        "num_identities": source.num_identities,
        "noise_seed": NOISE_SEED,
        "training_share": TRAIN_SHARE,
        "training_rule": _words(TRAIN_RULE),
        "detections": [asdict(item) for item in detections],
        "runs": [asdict(item) for item in runs],
    }
    arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
