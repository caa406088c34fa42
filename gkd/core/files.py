"""Reading and writing files that may be hostile, damaged or half written.

Nothing read here can run code: pickles go through a reader that knows a fixed table of names and imports nothing, and
weights through `torch.load(weights_only=True)`. Sizes are bounded before memory is taken.
"""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import re
import secrets
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn, TextIO

from gkd.core.errors import CheckpointError, DataError, GkdError

GIB = 1 << 30

_LOCKS: set[TextIO] = set()


def _let_go_of_locks() -> None:
    for lock in _LOCKS:
        lock.close()


# A fork shares its parent's locks: a loading process would hold a folder for seconds after its rank was killed.
os.register_at_fork(after_in_child=_let_go_of_locks)


def read_bounded(path: str | Path, max_bytes: int) -> bytes:
    """The whole content of a regular file of at most `max_bytes`.

    Raises:
        DataError: the file is missing, is not a regular file, cannot be read, or is larger.
    """
    path = Path(path)
    _require_file(path, DataError)
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        size = path.stat().st_size
        raise DataError(f"{path}: {size:,} bytes is more than the {max_bytes:,} bytes allowed for this kind of file")
    return content


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed to `path`, on failure removed.

    A reader sees the old file or the whole new one, never a part. The folder is made where it is missing, and the
    temporary name keeps the suffix, since some writers choose their format by it.

    Raises:
        DataError: the folder cannot be made.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot make this folder: {error.strerror}") from error
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.writing{path.suffix}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked_folder(folder: Path, key: str, holder: str) -> Iterator[None]:
    """Hold `folder` for this process, made where it is missing; the lock falls with the process, however it ends.

    Args:
        key: the setting that names the folder, for messages.
        holder: what another process that holds it would be doing, for the message.

    Raises:
        GkdError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise GkdError(f"{key}: cannot write in {folder}: {error.strerror}; choose another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GkdError(f"{key}: {holder} in {folder}; wait for it, or choose another folder") from error
        _LOCKS.add(lock)
        try:
            yield
        finally:
            _LOCKS.discard(lock)


def restricted_unpickle(
    data: bytes | BinaryIO, allowed: Mapping[tuple[str, str], object], what: str, encoding: str = "ASCII"
) -> Any:
    """Unpickle with a fixed table of names; nothing is imported and nothing outside the table is called.

    Args:
        data: the pickle.
        allowed: what each (module, name) in the pickle stands for. The pickle may call these with any arguments.
        what: the file's name, for messages.
        encoding: how Python 2 `str` is read; "bytes" keeps it as bytes.

    Raises:
        DataError: the pickle asks for another name (which is named), is truncated, or is no pickle.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        return _RestrictedUnpickler(stream, allowed, what, encoding).load()
    except GkdError:
        raise
    except Exception as error:  # a hostile pickle can make the reader fail in any way
        reason = str(error) or type(error).__name__
        raise DataError(f"{what}: damaged, truncated or not a pickle ({reason}); make or download it again") from error


def restricted_load_torch(path: str | Path, max_bytes: int = 16 * GIB, placeholders: Sequence[type] = ()) -> Any:
    """`torch.load(weights_only=True)` on the CPU, with a clear message for each way in which it can fail.

    Args:
        path: the file.
        max_bytes: how large it may be, unpacked.
        placeholders: classes that may stand for others of the same module and name; the file may make objects of them
            with any arguments and any state.

    Raises:
        CheckpointError: missing, a folder, too large, a text or HTML page, truncated, or a pickle that wants to run
            code.
    """
    import torch

    path = Path(path)
    check_torch_file(path, max_bytes)
    try:
        with torch.serialization.safe_globals(list(placeholders)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except GkdError:
        raise
    except pickle.UnpicklingError as error:
        _refuse_pickle(path, error)
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError … for damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: damaged or truncated ({reason}); save or download it again") from error


def check_torch_file(path: Path, max_bytes: int) -> None:
    """Refuse what cannot be a file of `torch.save`, before it is read.

    Raises:
        CheckpointError: missing, a folder, empty, a text or HTML page, or larger than `max_bytes` when unpacked.
    """
    _require_file(path, CheckpointError)
    try:
        _check_torch_file(path, max_bytes)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error}); save or download it again") from error


class _RestrictedUnpickler(pickle._Unpickler):
    """The pure-Python unpickler: unlike the C one it keeps its memo in a dict, so a huge memo index takes no memory."""

    def __init__(self, stream: BinaryIO, allowed: Mapping[tuple[str, str], object], what: str, encoding: str) -> None:
        super().__init__(stream, encoding=encoding)
        self._allowed = allowed
        self._what = what

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise DataError(f"{self._what}: refused, since its pickle asks for `{module}.{name}`; nothing was run")
        return self._allowed[module, name]

    def load_build(self) -> None:
        # BUILD sets attributes: on a class or function of the table it would change this process for good.
        target = self.stack[-2]  # type: ignore[attr-defined]
        if callable(target):
            raise DataError(f"{self._what}: refused, since its pickle changes `{target!r}`; nothing was run")
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def _require_file(path: Path, error_type: type[GkdError]) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise error_type(f"{path}: {reason}") from error
    if stat.S_ISDIR(mode):
        raise error_type(f"{path}: is a folder, but a file is needed")
    if not stat.S_ISREG(mode):
        raise error_type(f"{path}: is not a regular file")


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_torch_file(path: Path, max_bytes: int) -> None:
    with path.open("rb") as file:
        head = file.read(256)
    if not head:
        raise CheckpointError(f"{path}: is empty; save or download it again")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path}: is an HTML or XML page, not weights; the download link led to a web page")
    if _is_text(head):
        raise CheckpointError(f"{path}: is a text file, not weights (begins with {head[:40]!r})")
    size = path.stat().st_size
    if head[:4] == b"PK\x03\x04":
        # Entries may be compressed, so what counts is what they unpack to.
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(entry.file_size for entry in archive.infolist()))
    if size > max_bytes:
        raise CheckpointError(f"{path}: {size:,} bytes is more than the {max_bytes:,} bytes allowed for weights")


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\n\r" or byte >= 32 for byte in head) and head[:1] != b"\x80"


def _refuse_pickle(path: Path, error: Exception) -> NoReturn:
    text = str(error)
    name = re.search(r"GLOBAL ([\w.]+)", text)
    if name is None:
        name = re.search(r"(?:class|function|global) `?([\w.]+\.[\w.]+)`?", text)
    if name is not None:
        raise CheckpointError(
            f"{path}: refused, since loading it would run `{name[1]}`; nothing was run; "
            "ask its author for a file of plain tensors (a state_dict)"
        ) from error
    raise CheckpointError(f"{path}: damaged, truncated or not a weights file; save or download it again") from error
