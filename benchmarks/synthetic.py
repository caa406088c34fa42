"""Faces drawn a second on one core, and how far raw pixels get on pairs of them.

    python benchmarks/synthetic.py [--identities 20] [--images 30] [--pairs 600] [--json OUT]

Faces are drawn a person at a time, as the files are written, and in random order, where each face pays for the head.
Times are processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.data.synthetic import SyntheticFaces, draw_face, make_pairs
from gkd.evaluation import verify_pairs

UNSEEN = 1_000_000  # the first identity of the pairs


def drawing_speed(order: Iterable[tuple[int, int]], size: int) -> float:
    """Faces drawn a second, not encoded."""
    keys = list(order)
    start = time.process_time()
    for identity, image in keys:
        draw_face(0, identity, image, size)
    return len(keys) / (time.process_time() - start)


def encoding_speed(num_identities: int, images_per_identity: int, size: int) -> float:
    """Faces drawn and encoded as JPEG a second."""
    faces = SyntheticFaces(num_identities=num_identities, images_per_identity=images_per_identity, seed=1, size=size)
    start = time.process_time()
    for index in range(len(faces)):
        faces[index]
    return len(faces) / (time.process_time() - start)


def pixel_accuracy(num_pairs: int, size: int) -> float:
    """Ten-fold accuracy of the cosine of raw pixels."""
    images, is_same = make_pairs(0, UNSEEN, 100, num_pairs, size=size)
    pixels = [cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR).reshape(-1) for image in images]
    vectors = np.stack(pixels).astype(np.float32)
    return float(verify_pairs(vectors[0::2], vectors[1::2], np.array(is_same)).accuracy)


def measure(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """One row for each size."""
    grouped = [(person, image) for person in range(arguments.identities) for image in range(arguments.images)]
    shuffled = [grouped[place] for place in np.random.default_rng(0).permutation(len(grouped))]
    rows = []
    for size in (64, 112):
        row = {
            "size": size,
            "drawn_per_second": drawing_speed(grouped, size),
            "drawn_shuffled_per_second": drawing_speed(shuffled, size),
            "encoded_per_second": encoding_speed(arguments.identities, arguments.images, size),
            "pixel_accuracy": pixel_accuracy(arguments.pairs, size),
        }
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=20)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=600, help="a multiple of 20")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    rows = measure(arguments)
    print(f"{'size':>5} {'draw/s':>8} {'shuffled/s':>11} {'draw+JPEG/s':>12} {'pixel cosine':>13}")
    for row in rows:
        print(
            f"{row['size']:5.0f} {row['drawn_per_second']:8.0f} {row['drawn_shuffled_per_second']:11.0f} "
            f"{row['encoded_per_second']:12.0f} {row['pixel_accuracy']:13.1%}"
        )
    if arguments.json:
        versions = {"numpy": np.__version__, "opencv": cv2.__version__, "python": platform.python_version()}
        arguments.json.write_text(json.dumps({"rows": rows, "versions": versions}, indent=2) + "\n")


if __name__ == "__main__":
    main()
