"""Time and memory of the IJB-B and IJB-C protocols after the network: reading pairs, pooling, scores, TAR at FAR.

    python benchmarks/ijb.py [--protocol IJBC] [--share 1.0] [--parts read pool score rates] [--json OUT]

Embeddings are random, their number and that of templates and pairs is the official one times `--share`. Each part runs
as it is here (`ours`) and as the field's public evaluation does it (`plain`): a text reader, a loop over templates that
searches all images for each, the two vectors of every pair gathered in batches of 100,000, and a curve from a sort of
all scores. Every measurement has a process of its own; memory is what it takes beyond its inputs (Linux only). Threads
are those of NumPy's BLAS: set OPENBLAS_NUM_THREADS. On a busy machine read the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.data.ijb_lists import IjbFaces, read_ijb_pairs
from gkd.evaluation import FAR_TARGETS, roc_curve, tar_at_far
from gkd.evaluation.template_scores import operating_points, pool_templates, score_pairs

DIM = 512
PLAIN_BATCH = 100_000
WRITTEN_LINES = 1_000_000
RESET_PEAK = "5"  # see proc(5), clear_refs


@dataclass(frozen=True)
class Protocol:
    """Official counts. Pairs are of a template enrolled in a gallery and one of the others."""

    images: int
    templates: int
    gallery: int
    pairs: int
    same: int

    def times(self, share: float) -> Protocol:
        """The same, smaller: pairs by the square, so that their share of all that could be compared stays."""
        images, templates, gallery = (round(count * share) for count in (self.images, self.templates, self.gallery))
        return Protocol(images, templates, gallery, *(round(count * share**2) for count in (self.pairs, self.same)))


PROTOCOLS = {
    "IJBB": Protocol(227_630, 12_115, 1_845, 8_010_270, 10_270),
    "IJBC": Protocol(469_375, 23_124, 3_531, 15_658_489, 19_557),
}


@dataclass(frozen=True)
class Row:
    """One part measured one way; `sample` is part of its result, to be compared."""

    part: str
    way: str
    seconds: float
    cpu_seconds: float
    gib: float
    sample: list[float]


def pairs_of(counts: Protocol) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left and right templates, and labels. No pair comes twice; which templates are the gallery's is random."""
    generator = np.random.default_rng(1)
    order = generator.permutation(counts.templates).astype(np.int32)
    num_others = counts.templates - counts.gallery
    numbers = generator.choice(counts.gallery * num_others, counts.pairs, replace=False)
    is_same = np.arange(counts.pairs) % (counts.pairs // counts.same) == 0
    return order[numbers // num_others], order[counts.gallery + numbers % num_others], is_same


def images_of(counts: Protocol) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings, templates, medias and detector scores; images of a template lie together."""
    generator = np.random.default_rng(2)
    rest = generator.integers(0, counts.templates, counts.images - counts.templates)
    templates = np.sort(np.concatenate((np.arange(counts.templates), rest)))
    medias = np.arange(counts.images) // 5
    embeddings = generator.standard_normal((counts.images, DIM), dtype=np.float32)
    return embeddings, templates, medias, generator.uniform(0.1, 1.0, counts.images)


def templates_of(counts: Protocol) -> np.ndarray:
    rows = np.random.default_rng(3).standard_normal((counts.templates, DIM), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def scores_of(counts: Protocol) -> tuple[np.ndarray, np.ndarray]:
    is_same = pairs_of(counts)[2]
    noise = np.random.default_rng(4).standard_normal(counts.pairs, dtype=np.float32)
    return noise * np.float32(0.08) + is_same.astype(np.float32) * np.float32(0.4), is_same


def read_part(counts: Protocol, way: str, folder: Path) -> Callable[[], np.ndarray]:
    path = folder / "meta" / "ijbc_template_pair_label.txt"
    ids = np.arange(counts.templates)
    none = np.empty(0, np.int64)
    faces = IjbFaces(folder, "IJBC", (), np.empty((0, 5, 2)), np.empty(0), none, none, ids)
    if way == "ours":
        return lambda: read_ijb_pairs(faces).left
    return lambda: np.loadtxt(path, dtype=np.int64)[:, 0]


def pool_part(counts: Protocol, way: str, _: Path) -> Callable[[], np.ndarray]:
    embeddings, templates, medias, scores = images_of(counts)
    if way == "ours":
        return lambda: pool_templates(embeddings, templates, medias, counts.templates, detector_scores=scores)

    def plain() -> np.ndarray:
        weighted = embeddings * scores[:, None]
        vectors = np.zeros((counts.templates, DIM))
        for template in range(counts.templates):
            (own,) = np.where(templates == template)
            own_medias = medias[own]
            vectors[template] = sum(weighted[own[own_medias == media]].mean(0) for media in np.unique(own_medias))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return plain


def score_part(counts: Protocol, way: str, _: Path) -> Callable[[], np.ndarray]:
    templates = templates_of(counts)
    left, right, _labels = pairs_of(counts)
    if way == "ours":
        return lambda: score_pairs(templates, left, right)
    exact = templates.astype(np.float64)

    def plain() -> np.ndarray:
        scores = np.zeros(len(left))
        for start in range(0, len(left), PLAIN_BATCH):
            batch = slice(start, start + PLAIN_BATCH)
            scores[batch] = np.sum(exact[left[batch]] * exact[right[batch]], -1)
        return scores

    return plain


def rates_part(counts: Protocol, way: str, _: Path) -> Callable[[], np.ndarray]:
    scores, is_same = scores_of(counts)
    if way == "ours":
        points = lambda: operating_points(scores, is_same)  # noqa: E731
        return lambda: np.array([np.nan if point is None else point.tar for point in points().values()])
    exact = scores.astype(np.float64)
    rates = lambda: tar_at_far(roc_curve(exact, is_same), FAR_TARGETS)  # noqa: E731
    return lambda: np.array([np.nan if tar is None else tar for tar in rates().values()])


PARTS = {"read": read_part, "pool": pool_part, "score": score_part, "rates": rates_part}


def memory_bytes(field: str) -> int:
    """VmRSS, held now, or VmHWM, the most since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(part: str, way: str, counts: Protocol, folder: Path) -> Row:
    """Run one part in this process."""
    work = PARTS[part](counts, way, folder)
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = memory_bytes("VmRSS")
    start, cpu_start = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    gib = (memory_bytes("VmHWM") - before) / 2**30
    flat = result.reshape(-1)
    return Row(part, way, seconds, cpu_seconds, gib, flat[:: max(1, len(flat) // 1000)].astype(float).tolist())


def in_fresh_process(*arguments: Any) -> Row:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def write_pairs(counts: Protocol, folder: Path) -> None:
    left, right, is_same = pairs_of(counts)
    (folder / "meta").mkdir()
    with (folder / "meta" / "ijbc_template_pair_label.txt").open("w") as file:
        for start in range(0, counts.pairs, WRITTEN_LINES):
            block = slice(start, start + WRITTEN_LINES)
            columns = (column[block].tolist() for column in (left, right, is_same.astype(int)))
            file.writelines(f"{one} {other} {label}\n" for one, other, label in zip(*columns, strict=True))


def compare(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure every part both ways and print the table."""
    counts = PROTOCOLS[arguments.protocol].times(arguments.share)
    print(f"{arguments.protocol} x {arguments.share:g}: {counts.images:,} images, {counts.templates:,} templates, "
          f"{counts.pairs:,} pairs; BLAS threads: {os.environ.get('OPENBLAS_NUM_THREADS', 'all')}")  # fmt: skip
    print(f"{'part':6} {'way':6} {'seconds':>9} {'CPU s':>9} {'GiB':>7}   greatest difference of the two")
    if "read" in arguments.parts:
        write_pairs(counts, folder)
    rows: list[Row] = []
    for part in arguments.parts:
        both = []
        for way in ("ours", "plain"):
            row = in_fresh_process(part, way, counts, folder)
            both.append(row)
            apart = np.nanmax(np.abs(np.subtract(both[0].sample, row.sample))) if way == "plain" else None
            told = "" if apart is None else f"{apart:.1e}"
            print(f"{part:6} {way:6} {row.seconds:9.2f} {row.cpu_seconds:9.2f} {row.gib:7.2f}   {told}", flush=True)
        rows.extend(both)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="IJBC")
    parser.add_argument("--share", type=float, default=1.0, help="of the official counts")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        print("memory is read from Linux's /proc, which is not here: nothing was measured; run this on Linux")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(arguments, Path(folder))
    if arguments.json:
        settings = {"protocol": arguments.protocol, "share": arguments.share, "numpy": np.__version__}
        content = [{key: value for key, value in asdict(row).items() if key != "sample"} for row in rows]
        arguments.json.write_text(json.dumps(settings | {"rows": content}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
