"""Face images from files: training sets, verification pairs, decoding and the loader.

N images, H x W pixels. Face data has `len()`, `[i] -> (encoded bytes, label)`, `num_identities`, `identity_names`,
`fingerprint` and `describe(i)`; see `FaceData`.
"""

from gkd.data.face_data import FaceData
from gkd.data.image_folder import FaceFolder, pack_folder
from gkd.data.loader import RawBatch, TrainLoader
from gkd.data.pairs import PairSet
from gkd.data.recordio import RecordFile, RecordWriter
from gkd.data.transforms import decode_image, flip_on_device

DATASETS: dict[str, type[RecordFile] | type[FaceFolder]] = {"recordio": RecordFile, "folder": FaceFolder}

__all__ = [
    "DATASETS",
    "FaceData",
    "FaceFolder",
    "PairSet",
    "RawBatch",
    "RecordFile",
    "RecordWriter",
    "TrainLoader",
    "decode_image",
    "flip_on_device",
    "pack_folder",
]
