"""Verification sets (.bin): encoded face images in pairs, and whether each pair shows one person."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.core.files import GIB, atomic_write, restricted_unpickle
from gkd.data.bounded_stream import open_bounded
from gkd.data.image_header import image_format

# Protocol 4 is the newest that every Python 3 in use reads.
_PICKLE_PROTOCOL = 4


class PairSet:
    """Images 2i and 2i + 1 are pair i.

    Attributes:
        images: the encoded images, as bytes.
        is_same: bool (P,), whether pair i shows one person.
        name: what to call the set, the file's stem where it was read from one.
    """

    def __init__(
        self, images: Sequence[bytes], is_same: Sequence[bool] | npt.NDArray[Any], name: str = "pairs"
    ) -> None:
        """Check the pairs.

        Raises:
            DataError: no pairs, counts that disagree, a flag neither true nor false, or an item that is no image.
        """
        self.name = name
        self.is_same: npt.NDArray[np.bool_] = _as_flags(is_same, name)
        self.images = [_as_image(item, index, name) for index, item in enumerate(images)]
        if len(self.images) != 2 * len(self.is_same):
            raise DataError(
                f"{name}: {len(self.images)} images and {len(self.is_same)} same-or-different flags; "
                "every pair needs one flag and two images"
            )
        if not self.images:
            raise DataError(f"{name}: holds no pairs")

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.is_same)

    def describe(self, index: int) -> str:
        """What to call image `index` in messages."""
        return f"{self.name}: pair {index // 2}, {'right' if index % 2 else 'left'} image"

    @classmethod
    def load(cls, path: str | Path, max_bytes: int = 4 * GIB) -> Self:
        """Read a pickle of (images, is_same) without running anything that it asks for.

        Images may be Python 2 `str`, `bytes` or one-dimensional uint8 arrays.

        Raises:
            DataError: missing, too large, no pickle, truncated, asking for something else than arrays and bytes, or
                not a set of pairs.
        """
        path = Path(path)
        with open_bounded(path, max_bytes) as file:
            loaded = restricted_unpickle(file, _ALLOWED, str(path), encoding="bytes")
        if not isinstance(loaded, (tuple, list)) or len(loaded) != 2:
            raise DataError(f"{path}: holds {_kind(loaded)}, but a pair (images, is_same) is needed")
        images, is_same = loaded
        if not isinstance(images, (list, tuple)):
            raise DataError(f"{path}: its images are {_kind(images)}, but a list is needed")
        images = list(images)
        del loaded
        for index, item in enumerate(images):  # one at a time: a set of arrays is in memory once, not twice
            if isinstance(item, _PickledArray):
                images[index] = _as_image(item, index, str(path))
        pairs = cls(images, _unwrap(is_same, str(path)), str(path))
        pairs.name = path.stem
        return pairs

    def save(self, path: str | Path) -> None:
        """Write the pickle that `load`, and the field's other code, reads."""
        content = (self.images, [bool(flag) for flag in self.is_same])
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            pickle.dump(content, file, protocol=_PICKLE_PROTOCOL)


class _PickledDtype:
    """Stands for numpy.dtype in a pickle: the name of a plain one-byte or integer type."""

    def __init__(self, name: object = None, *_: object) -> None:
        text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
        if text not in ("u1", "b1", "i1", "i4", "i8"):
            raise ValueError(f"an array of type {text!r}")
        self.name = str(text)
        self.byte_order = "<"

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        text = order.decode("ascii", "replace") if isinstance(order, bytes) else order
        if text not in ("<", ">", "|", "="):
            raise ValueError("an array type with a damaged state")
        self.byte_order = "<" if text in ("|", "=") else str(text)


class _PickledArray:
    """Stands for numpy.ndarray in a pickle: its parts, checked before an array is made of them."""

    def __init__(self, *_: object) -> None:
        self.array: npt.NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array with a damaged state")
        self.array = _make_array(state[4], state[2], state[1])


def _make_array(raw: object, dtype: object, shape: object) -> npt.NDArray[Any]:
    if not isinstance(dtype, _PickledDtype) or not isinstance(raw, (bytes, bytearray)):
        raise ValueError("an array of objects")
    array = np.frombuffer(bytes(raw), dtype=np.dtype(dtype.byte_order + dtype.name))
    extents = [extent for extent in shape if type(extent) is int] if isinstance(shape, tuple) else None
    if extents is None or min(extents, default=1) < 0 or math.prod(extents) != array.size:
        raise ValueError(f"an array whose {array.size} items do not fill its shape")
    # Image arrays are (bytes,), or (1, bytes) from some tools; both flatten to the same.
    return array.reshape(-1)


def _frombuffer(raw: object, dtype: object, shape: object, *_: object) -> _PickledArray:
    made = _PickledArray()
    made.array = _make_array(raw, dtype, shape)
    return made


def _reconstruct(*_: object) -> _PickledArray:
    return _PickledArray()


def _encode(text: object = "", encoding: object = "latin1") -> bytes:
    """What `_codecs.encode` does in pickles of protocol 2: bytes written as Latin-1 text."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise ValueError("text in an encoding other than latin1")
    return text.encode("latin1")


def _no_bytes(*arguments: object) -> bytes:
    """What `bytes()` does in pickles of protocol 2: the empty value. A count would ask for that much memory."""
    if arguments:
        raise ValueError("a call of bytes with arguments")
    return b""


_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bool"): bool,
    ("__builtin__", "bool"): bool,
}


def _kind(value: object) -> str:
    return f"{type(value).__name__.lstrip('_')} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


def _unwrap(value: Any, where: str) -> Any:
    if not isinstance(value, _PickledArray):
        return value
    if value.array is None:
        raise DataError(f"{where}: holds an array without content")
    return value.array


def _as_flags(is_same: Any, where: str) -> npt.NDArray[np.bool_]:
    if not isinstance(is_same, (list, tuple, np.ndarray)):
        raise DataError(f"{where}: its same-or-different flags are {_kind(is_same)}, but a list is needed")
    for index, flag in enumerate(is_same):
        if not isinstance(flag, (bool, int, np.bool_, np.integer)) or flag not in (0, 1):
            raise DataError(f"{where}: the flag of pair {index} is {flag!r}, but true or false is needed")
    return np.array([bool(flag) for flag in is_same], dtype=np.bool_)


def _as_image(item: Any, index: int, where: str) -> bytes:
    item = _unwrap(item, where)
    if isinstance(item, np.ndarray) and item.dtype == np.uint8:
        item = item.tobytes()
    if not isinstance(item, (bytes, bytearray)):
        raise DataError(f"{where}: image {index} is {_kind(item)}, but encoded image bytes are needed")
    if image_format(bytes(item[:16])) is None:
        raise DataError(f"{where}: image {index} is not a JPEG, PNG, BMP or WebP image (begins with {item[:8]!r})")
    return bytes(item)
