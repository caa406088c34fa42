"""`prepare.py inspect --augment`: a picture of what a training config does to faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd.build import build_augment, build_dataset
from gkd.core.config import load_config
from gkd.core.errors import ConfigError, DataError
from gkd.core.seed import permutation
from gkd.data.augment import AUGMENTATIONS, Augment
from gkd.data.contact_sheet import draw_sheet, save_sheet
from gkd.data.face_data import FaceData
from gkd.data.identities import open_faces
from gkd.data.image_header import image_size
from gkd.data.transforms import decode_image
from gkd.schema import TrainRun

Pixels = npt.NDArray[np.uint8]

_COLUMNS = 8


def draw(config: Path, data: Path | None, out: Path, images: int) -> None:
    """Draw what the augmentations of a training config do to some of its images.

    Args:
        config: the training config.
        data: a .rec or a folder of identities to take the images from; None takes the config's training data.
        out: the picture, .png or .jpg.
        images: how many images.

    Raises:
        ConfigError: a config that is not valid, or fewer than one image. DataError: unreadable data.
    """
    run = load_config(config, TrainRun)
    faces = build_dataset(run) if data is None else open_faces(data)
    save_sheet(draw_augmentations(faces, build_augment(run), images), out)


def draw_augmentations(faces: FaceData, augment: Augment, num_images: int) -> Pixels:
    """A contact sheet of images chosen at random, a function of the augmentation's seed.

    A row for each image: the original, then the list applied in epochs 0 to 6. Then a row for each augmentation alone,
    applied to all images: those of the list with their settings, then the others with their defaults.

    Raises:
        ConfigError: fewer than one image. DataError: no images, or unreadable ones.
    """
    if num_images < 1:
        raise ConfigError(f"augmentations are drawn on at least 1 image, got {num_images}")
    if not len(faces):
        raise DataError("there are no images to draw augmentations on")
    ids = permutation(len(faces), augment.seed, 0)[:num_images]
    images = _decode(faces, ids)
    tiles, captions = _rows_of_faces(images, torch.from_numpy(ids), augment)
    for name, alone in _each_alone(augment):
        tiles += _row_of_step(images, torch.from_numpy(ids), alone)
        captions += [name] + [""] * (_COLUMNS - 1)
    return draw_sheet(tiles, captions=captions, columns=_COLUMNS)


def _decode(faces: FaceData, ids: npt.NDArray[np.int64]) -> Tensor:
    """The images (N, 3, H, W), all of the size of the first."""
    encoded = [faces[int(index)][0] for index in ids]
    size = image_size(encoded[0]) or (0, 0)  # where it has none, decoding says what is wrong
    pixels = [
        decode_image(content, size, faces.describe(int(index))) for content, index in zip(encoded, ids, strict=True)
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def _rows_of_faces(images: Tensor, ids: Tensor, augment: Augment) -> tuple[list[Pixels], list[str]]:
    epochs = [_as_tiles(augment(images, ids, epoch)[0]) for epoch in range(_COLUMNS - 1)]
    tiles = [tile for row in zip(_as_tiles(images), *epochs, strict=True) for tile in row]
    captions = [["original", *(f"epoch {epoch}" for epoch in range(_COLUMNS - 1))]] * len(ids)
    return tiles, [caption for row in captions for caption in row]


def _each_alone(augment: Augment) -> list[tuple[str, Augment]]:
    """Each augmentation at probability 1, with its caption."""
    listed = [(step.name, step) for step in augment.steps]
    names = {name for name, _ in listed}
    others = [(f"({name})", cls()) for name, cls in AUGMENTATIONS.items() if name not in names]
    return [(name, Augment([step.always()], augment.seed)) for name, step in [*listed, *others]]


def _row_of_step(images: Tensor, ids: Tensor, alone: Augment) -> list[Pixels]:
    """A row of tiles: every image in epoch 0, then, where there is room, in epoch 1, and so on."""
    num_epochs = -(-_COLUMNS // len(ids))
    tiles = [
        tile for epoch in range(num_epochs) for tile in _as_tiles(alone(images[:_COLUMNS], ids[:_COLUMNS], epoch)[0])
    ]
    return tiles[:_COLUMNS]


def _as_tiles(images: Tensor) -> list[Pixels]:
    return list(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()))
