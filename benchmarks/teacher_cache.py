"""Reading kept embeddings: rows a second in shuffled order, from a file that lies in the page cache.

    python benchmarks/teacher_cache.py [--images 500000] [--dim 512] [--batches 64 512 4096] [--repeats 7] [--threads 1]
                                       [--folder DIR] [--json OUT]

A row is one embedding of `dim` numbers of 2 bytes, which comes out as fp32. The ways:
  lookup      what training calls
  numpy       the same rows by indexing a numpy.memmap with two index arrays, then to fp32
  memory      the rows out of a tensor in ordinary memory by torch.index_select, left in 16 bits: the floor
  in order    lookup of rows that follow each other
  cold        lookup where the file is not in the page cache (Linux; fewer rows)
  cold numpy  the numpy way there
Medians over the repeats; every repeat reads other rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.inference.embedding_files import DTYPES, Origin
from gkd.inference.embedding_store import EmbeddingStore

ROWS_A_REPEAT = 65_536
COLD_ROWS = 8_192


def full_store(folder: Path, num_images: int, dim: int, dtype: str) -> EmbeddingStore:
    """A finished store of random rows, all of it in the page cache."""
    store = EmbeddingStore(folder, Origin("data", "network", "input", num_images, dim, dtype))
    rows = torch.randn(1000, 2, dim).to(DTYPES[dtype]).view(torch.int16).numpy().tobytes()
    with (folder / store.origin.embeddings_name).open("wb") as file:
        for _ in range(num_images // 1000):
            file.write(rows)
    (folder / "done.u8").write_bytes(b"\1" * store.origin.num_blocks)
    np.fromfile(folder / store.origin.embeddings_name, np.int16)
    return store


def rows_a_second(read: Callable[[Tensor, Tensor], object], ids: list[Tensor], flips: list[Tensor]) -> float:
    """Rows a second of one repeat."""
    start = time.perf_counter()
    for own_ids, own_flips in zip(ids, flips, strict=True):
        read(own_ids, own_flips)
    return sum(len(own) for own in ids) / (time.perf_counter() - start)


def by_numpy(bits: np.memmap, dtype: torch.dtype) -> Callable[[Tensor, Tensor], object]:
    """Rows by indexing a mapped file."""

    def read(ids: Tensor, flips: Tensor) -> Tensor:
        rows = bits[ids.numpy(), flips.numpy().astype(np.intp)]
        return torch.from_numpy(rows).view(dtype).float()

    return read


def ways(store: EmbeddingStore) -> dict[str, Callable[[Tensor, Tensor], object]]:
    """What reads rows."""
    origin = store.origin
    path, shape = store.folder / origin.embeddings_name, (origin.num_images, 2, origin.embedding_dim)
    bits = np.memmap(path, np.int16, mode="r", shape=shape)
    in_memory = torch.from_numpy(np.fromfile(path, np.int16)).view(2 * origin.num_images, origin.embedding_dim)
    return {
        "lookup": store.lookup,
        "numpy": by_numpy(bits, DTYPES[origin.dtype]),
        "memory": lambda ids, flips: torch.index_select(in_memory, 0, 2 * ids + flips),
    }


def cold_rates(store: EmbeddingStore, batch: int, repeats: int) -> dict[str, list[float]]:
    """Rows a second of each repeat from a file that the page cache has been told to forget; nothing else may map it."""
    origin, num_batches = store.origin, max(8, COLD_ROWS // batch)
    shape = (origin.num_images, 2, origin.embedding_dim)
    seen: dict[str, list[float]] = {"cold": [], "cold numpy": []}
    for _ in range(repeats):
        for name, rates in seen.items():
            ids = torch.randint(0, origin.num_images, (num_batches * batch,)).split(batch)
            flips = (torch.rand(num_batches * batch) < 0.5).split(batch)
            forget(store.folder / origin.embeddings_name)
            if name == "cold":
                read = EmbeddingStore(store.folder, origin).lookup
            else:
                bits = np.memmap(store.folder / origin.embeddings_name, np.int16, mode="r", shape=shape)
                read = by_numpy(bits, DTYPES[origin.dtype])
            rates.append(rows_a_second(read, list(ids), list(flips)))
    return seen


def forget(path: Path) -> None:
    """Drop the file's pages from memory."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def compare(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Measure every way and print the table."""
    generator = torch.Generator().manual_seed(0)
    table: list[dict[str, object]] = []
    print(f"{'type':9} {'batch':>6} {'way':11} {'rows/s':>12} {'GB/s':>6}")
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            store = full_store(Path(folder), arguments.images, arguments.dim, dtype)
            cold = {batch: cold_rates(store, batch, arguments.repeats + 1) for batch in arguments.batches}
            readers = ways(store)
            for batch in arguments.batches:
                seen = {name: list[float]() for name in (*readers, "in order")} | cold[batch]
                for _ in range(arguments.repeats + 1):
                    ids = torch.randint(0, arguments.images, (ROWS_A_REPEAT,), generator=generator).split(batch)
                    flips = (torch.rand(ROWS_A_REPEAT, generator=generator) < 0.5).split(batch)
                    for name, read in readers.items():
                        seen[name].append(rows_a_second(read, list(ids), list(flips)))
                    start = int(torch.randint(0, arguments.images - ROWS_A_REPEAT, (), generator=generator))
                    ordered = torch.arange(start, start + ROWS_A_REPEAT).split(batch)
                    seen["in order"].append(rows_a_second(store.lookup, list(ordered), list(flips)))
                for name, rates in seen.items():
                    rate = statistics.median(rates[1:])
                    table.append({"dtype": dtype, "batch": batch, "way": name, "rows_per_second": rate})
                    print(
                        f"{dtype:9} {batch:6} {name:11} {rate:12,.0f} {rate * arguments.dim * 2 / 1e9:6.2f}", flush=True
                    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512, 4096])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the file is made; the system's temporary folder by default")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = compare(arguments)
    if arguments.json:
        settings = {key: str(value) for key, value in vars(arguments).items()} | {"torch": torch.__version__}
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
