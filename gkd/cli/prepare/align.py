"""`prepare.py align`: bringing the faces of photos to the field's template."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gkd.cli.prepare.tasks import Tasks

_DESCRIPTION = """Writes a crop of the faces of every photo below PHOTOS to the same place below OUT, turned,
scaled and moved by five landmarks to the template that face networks are trained on. OUT also gets
faces.csv (photo, face, score, landmarks, crop) and not_found.csv (photo, why). Run the command again
after an interruption, or with new photos: what is finished is skipped.

Photos are turned as their EXIF orientation says, and landmarks are in pixels of the upright photo."""

_FACES = (
    "which faces of a photo. largest: the largest whose centre lies in the middle half of the photo, or of all where "
    "none does, for a stranger cut by the border is often larger than the subject. center: the nearest to the middle. "
    "all: every one, as NAME_face1 … only: photos with several are listed in not_found.csv (%(default)s)"
)

_log = logging.getLogger(__name__)


def add(tasks: Tasks) -> None:
    """Add the task to the command line."""
    task = tasks.add_parser(
        "align",
        help="crop the faces of photos, aligned by five landmarks",
        description=_DESCRIPTION,
        example="prepare.py align photos aligned --detector face_detection_yunet_2023mar.onnx --workers 8",
    )
    task.add_argument("photos", type=Path, metavar="PHOTOS", help="a folder of photos, with sub-folders or without")
    task.add_argument("out", type=Path, metavar="OUT", help="a new folder, or one to go on with")
    _add_source(task)
    task.add_argument("--faces", choices=["largest", "center", "all", "only"], default="largest", help=_FACES)
    task.add_argument("--size", type=int, default=112, help="height and width of crops in pixels (%(default)s)")
    task.add_argument("--format", choices=["jpg", "png"], default="jpg", help="of crops; png is lossless (%(default)s)")
    task.add_argument("--quality", type=int, default=95, help="of JPEG crops, 1 to 100 (%(default)s)")
    task.add_argument("--workers", type=int, default=1, help="processes that align (%(default)s)")
    task.set_defaults(run=_align)


def _add_source(task: argparse.ArgumentParser) -> None:
    source = task.add_mutually_exclusive_group(required=True)
    source.add_argument("--detector", type=Path, metavar="YUNET.onnx", help="find faces with YuNet, by OpenCV")
    source.add_argument(
        "--landmarks",
        type=Path,
        metavar="CSV",
        help="known landmarks: columns photo,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5 (or le_x …, or lefteye_x … as CelebA): the "
        "eye at the left of the picture, the other, the nose, the mouth corners likewise; faces.csv is such a file",
    )
    task.add_argument("--min-score", type=float, help="leave out what the detector is less sure of, 0 to 1 (0.6)")


def _align(arguments: argparse.Namespace) -> None:
    from gkd.inference.align import align_folder

    report = align_folder(
        arguments.photos,
        arguments.out,
        landmarks=arguments.landmarks,
        detector=arguments.detector,
        min_score=arguments.min_score,
        faces=arguments.faces,
        size=arguments.size,
        format=arguments.format,
        quality=arguments.quality,
        num_workers=arguments.workers,
    )
    _log.info(
        "aligned %d faces of %d photos into %s; no face for %d photos%s",
        report.num_faces,
        report.num_photos,
        arguments.out,
        report.num_not_found,
        f", see {arguments.out / 'not_found.csv'}" if report.num_not_found else "",
    )
