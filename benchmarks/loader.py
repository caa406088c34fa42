"""Images a second that the loader feeds, beside bare JPEG decoding and beside the loading chain of the field.

    python benchmarks/loader.py [--faces FOLDER] [--batch 128] [--steps 100] [--rounds 7] [--json OUT]

Three ways to get the same images of one .rec, with the same number of processes, one thread each:
  decoder  cv2.imdecode(bytes, RGB) alone: each process decodes its share of bytes that are in its memory already
  gkd      TrainLoader, until the main process holds the micro-batch
  chain    imdecode, BGR to RGB, ToPILImage, RandomHorizontalFlip, ToTensor, Normalize for each image, then the
           stock DataLoader of torch, until the main process holds the batch
A round runs all three, one after the other; ratios are taken within a round, and the table shows medians over rounds.
Processor time is that of all processes together, and changes less with what else the machine does. FOLDER has one
sub-folder of images for each person; synthetic faces are drawn where it is absent.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.data import FaceData, FaceFolder, RecordFile, RecordWriter, TrainLoader
from gkd.data.batches import BatchPlan
from gkd.data.sampling.uniform import Uniform
from gkd.data.synthetic import SyntheticFaces

SIZE = (112, 112)
NUM_WARM = 6  # steps before the clock starts; as many follow its end, so that no process runs out of work in between
Speed = dict[str, float]


def open_faces(folder: Path | None) -> FaceData:
    """The images of `folder`, or 2,000 synthetic ones."""
    if folder is not None and folder.is_dir():
        return FaceFolder(folder)
    print("no folder of faces: drawing synthetic ones")
    return SyntheticFaces(num_identities=100, images_per_identity=20, seed=1, size=SIZE[0])


def pack(faces: FaceData, path: Path) -> RecordFile:
    """Write `faces` into a .rec and open it."""
    with RecordWriter(path) as writer:
        for index in range(len(faces)):
            encoded, label = faces[index]
            writer.write(label, encoded)
    return RecordFile(path)


def processor_seconds() -> float:
    """Of all threads of this process and of its children, so far."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    threads = [thread for pid in (own, *children) for thread in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) * 1e-9


def decoder_speed(data: RecordFile, num_images: int, num_workers: int) -> Speed:
    """Processes that decode their share of `num_images` from memory."""
    fork = multiprocessing.get_context("fork")
    results, barrier = fork.SimpleQueue(), fork.Barrier(num_workers)
    shares = [
        num_images * (worker + 1) // num_workers - num_images * worker // num_workers for worker in range(num_workers)
    ]
    workers = [fork.Process(target=_decode_share, args=(data, each, barrier, results)) for each in shares]
    for worker in workers:
        worker.start()
    times = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    wall = max(end for _, end, _ in times) - min(start for start, _, _ in times)
    return {
        "images_per_second": num_images / wall,
        "cpu_us_per_image": 1e6 * sum(cpu for _, _, cpu in times) / num_images,
    }


def _decode_share(data: RecordFile, num_images: int, barrier: Barrier, results: Any) -> None:
    contents = [data[index][0] for index in range(len(data))]
    order = np.random.default_rng(os.getpid()).integers(0, len(contents), num_images).tolist()
    barrier.wait()
    start, cpu = time.perf_counter(), time.process_time()
    for index in order:
        cv2.imdecode(np.frombuffer(contents[index], np.uint8), cv2.IMREAD_COLOR_RGB)
    results.put((start, time.perf_counter(), time.process_time() - cpu))


def loader_speed(start: Callable[[], Iterable[Any]], num_steps: int, batch_size: int) -> Speed:
    """A loader of `num_steps` + 2 NUM_WARM steps; the time is taken over the steps in the middle."""
    marks = []
    for number, _ in enumerate(start()):
        if number in (NUM_WARM - 1, NUM_WARM - 1 + num_steps):
            marks.append((time.perf_counter(), processor_seconds()))
    (started, cpu_started), (ended, cpu_ended) = marks
    num_images = num_steps * batch_size
    return {
        "images_per_second": num_images / (ended - started),
        "cpu_us_per_image": 1e6 * (cpu_ended - cpu_started) / num_images,
    }


def gkd_speed(data: RecordFile, num_steps: int, batch_size: int, num_workers: int) -> Speed:
    """This project's loader."""
    order = Uniform().order(data, seed=1, batch_size=batch_size)
    plan = BatchPlan(order, batch_size=batch_size)
    total_steps = num_steps + 2 * NUM_WARM
    loader = TrainLoader(data, plan, image_size=SIZE, total_steps=total_steps, num_workers=num_workers)
    return loader_speed(lambda: loader, num_steps, batch_size)


class ChainFaces(Dataset[Any]):
    """The chain of transforms that face recognition code mostly has."""

    def __init__(self, data: RecordFile, num_images: int) -> None:
        from torchvision import transforms

        self.data = data
        self.num_images = num_images
        half = [0.5, 0.5, 0.5]
        steps = [transforms.ToPILImage(), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(half, half)])

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        encoded, label = self.data[index % len(self.data)]
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        return self.transform(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)), torch.tensor(label)


def chain_speed(data: RecordFile, num_steps: int, batch_size: int, num_workers: int) -> Speed:
    """The chain in the loader of torch."""
    faces = ChainFaces(data, (num_steps + 2 * NUM_WARM) * batch_size)

    def start() -> Iterable[Any]:
        return DataLoader(faces, batch_size, shuffle=True, drop_last=True, num_workers=num_workers)

    return loader_speed(start, num_steps, batch_size)


def measure(data: RecordFile, arguments: argparse.Namespace, num_workers: int) -> dict[str, Any]:
    """Medians over rounds, and of the ratios within rounds."""
    steps, batch = arguments.steps, arguments.batch
    rounds: list[dict[str, Speed]] = []
    for _ in range(arguments.rounds):
        rounds.append(
            {
                "decoder": decoder_speed(data, steps * batch, num_workers),
                "gkd": gkd_speed(data, steps, batch, num_workers),
                "chain": chain_speed(data, max(steps // 3, 10), batch, num_workers),
            }
        )
    row: dict[str, Any] = {"workers": num_workers, "rounds": rounds}
    for key in ("images_per_second", "cpu_us_per_image"):
        for way in ("decoder", "gkd", "chain"):
            row[f"{way}_{key}"] = statistics.median(each[way][key] for each in rounds)
    row["of_decoder"] = _ratio(rounds, "gkd", "decoder", "images_per_second")
    row["of_chain"] = _ratio(rounds, "gkd", "chain", "images_per_second")
    row["cpu_of_decoder"] = _ratio(rounds, "decoder", "gkd", "cpu_us_per_image")
    row["cpu_of_chain"] = _ratio(rounds, "chain", "gkd", "cpu_us_per_image")
    return row


def _ratio(rounds: Sequence[dict[str, Speed]], above: str, below: str, key: str) -> float:
    return statistics.median(each[above][key] / each[below][key] for each in rounds)


def check_pixels(data: RecordFile) -> None:
    """Every image that the loader gives equals `cv2.imdecode` of its bytes."""
    batch_size = min(100, len(data))
    order = Uniform().order(data, seed=1, batch_size=batch_size)
    plan = BatchPlan(order, batch_size=batch_size)
    with TrainLoader(data, plan, image_size=SIZE, total_steps=plan.steps_per_epoch, num_workers=2) as loader:
        for batch in loader:
            for sample_id, image in zip(batch.sample_ids.tolist(), batch.images, strict=True):
                expected = cv2.imdecode(np.frombuffer(data[sample_id][0], np.uint8), cv2.IMREAD_COLOR)
                if not np.array_equal(image.numpy()[..., ::-1], expected):
                    raise SystemExit(f"{data.describe(sample_id)}: pixels differ from cv2.imdecode")


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Images a second, processor microseconds an image, and the two ratios by either."""
    print(f"{'':>8} {'images a second':^26} {'CPU us an image':^20}  {'gkd / decoder':^13}  {'gkd / chain':^13}")
    print(f"{'workers':>8} {'decoder':>8} {'gkd':>8} {'chain':>8} {'dec.':>6} {'gkd':>6} {'chain':>6}", end="  ")
    print(f"{'wall':>6} {'CPU':>6}  {'wall':>6} {'CPU':>6}")
    for row in rows:
        speeds = " ".join(f"{row[f'{way}_images_per_second']:8.0f}" for way in ("decoder", "gkd", "chain"))
        costs = " ".join(f"{row[f'{way}_cpu_us_per_image']:6.1f}" for way in ("decoder", "gkd", "chain"))
        ratios = (
            f"{row['of_decoder']:6.1%} {row['cpu_of_decoder']:6.1%}  {row['of_chain']:6.2f} {row['cpu_of_chain']:6.2f}"
        )
        print(f"{row['workers']:8d} {speeds} {costs}  {ratios}")


def main() -> None:
    """Pack, check, measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "celeba"
    parser.add_argument("--faces", type=Path, default=default, help="a folder with a sub-folder for each person")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = pack(open_faces(arguments.faces), Path(folder) / "faces.rec")
        check_pixels(data)
        rows = [measure(data, arguments, num_workers) for num_workers in arguments.workers]
        num_bytes = Path(folder, "faces.rec").stat().st_size
    print(
        f"{len(data)} images, {num_bytes / len(data):,.0f} bytes each, batch {arguments.batch}, {os.cpu_count()} cores"
    )
    print_table(rows)
    if arguments.json:
        versions = {"torch": torch.__version__, "opencv": cv2.__version__, "python": platform.python_version()}
        arguments.json.write_text(json.dumps({"rows": rows, "versions": versions}, indent=2) + "\n")


if __name__ == "__main__":
    main()
