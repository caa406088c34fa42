"""Drawn faces of known people, some under a wrong label, and a network that tells the people apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from gkd.data import RecordFile, RecordWriter
from gkd.data.identities import Faces
from gkd.inference.class_centres import find_class_centres
from gkd.inference.embedding_store import EmbeddingStore
from gkd.models import InputSpec

SIZE = 8
EMBEDDING_DIM = 32


class Flat(nn.Module):
    """A fixed projection of the pixels, which mirroring changes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_dim = EMBEDDING_DIM
        self.input_size = (SIZE, SIZE)
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(EMBEDDING_DIM, 3 * SIZE * SIZE, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def picture(person: int, image: int, spread: int = 40) -> bytes:
    """An encoded image of a person; `spread` is how far a person's images differ."""
    base = np.random.default_rng(person).integers(40, 216, (SIZE, SIZE, 3))
    noise = np.random.default_rng((person, image)).integers(-spread, spread + 1, (SIZE, SIZE, 3))
    return bytes(cv2.imencode(".png", np.clip(base + noise, 0, 255).astype(np.uint8))[1])


def write_labelled(path: Path, shown: Sequence[tuple[int, int]], names: Sequence[str] | None = None) -> RecordFile:
    """A plain .rec of one image for each (person that it shows, label), in that order."""
    with RecordWriter(path, layout="plain", identity_names=names, with_list=True) as writer:
        for number, (person, label) in enumerate(shown):
            writer.write(label, picture(person, number), f"{label}/{number}.png")
    return RecordFile(path)


def some_wrong(num_people: int = 6, images_each: int = 8) -> tuple[list[tuple[int, int]], list[int]]:
    """(person, label) of each image, and which images have a wrong label: the first of each person's."""
    shown, wrong = [], []
    for person in range(num_people):
        for image in range(images_each):
            if image == 0:
                wrong.append(len(shown))
            shown.append((person, (person + 1) % num_people if image == 0 else person))
    return shown, wrong


def embed(folder: Path, faces: Faces, *, is_skipping: bool = False) -> EmbeddingStore:
    """The embeddings of the faces, in `folder`."""
    device = torch.device("cpu")
    return find_class_centres(folder, Flat(), InputSpec(), faces, device=device, is_skipping=is_skipping).store
