"""Face images from files: training sets, verification pairs, decoding and the loader.

N images, H x W pixels. Face data has `len()`, `[i] -> (encoded bytes, label)`, `labels`, `num_identities`,
`identity_names`, `fingerprint` and `describe(i)`; see `FaceData`.
"""

from typing import TYPE_CHECKING, Any

from gkd.data.face_data import FaceData
from gkd.data.image_folder import FaceFolder
from gkd.data.pairs import PairSet
from gkd.data.rec_pack import pack
from gkd.data.recordio import RecordFile, RecordWriter
from gkd.data.tar_shards import TarShards
from gkd.data.transforms import decode_image

if TYPE_CHECKING:
    from gkd.data.loader import RawBatch, TrainLoader

DATASETS: dict[str, type[RecordFile] | type[FaceFolder] | type[TarShards]] = {
    "recordio": RecordFile,
    "folder": FaceFolder,
    "webdataset": TarShards,
}

__all__ = [
    "DATASETS",
    "FaceData",
    "FaceFolder",
    "PairSet",
    "RawBatch",
    "RecordFile",
    "RecordWriter",
    "TarShards",
    "TrainLoader",
    "decode_image",
    "pack",
]


def __getattr__(name: str) -> Any:
    """The loader, imported when it is first asked for: it brings torch, which takes seconds that tools can save."""
    if name not in ("RawBatch", "TrainLoader"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gkd.data import loader

    return getattr(loader, name)
