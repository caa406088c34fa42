"""Read what `torch.save` wrote, also a training checkpoint that holds objects of a training framework.

torch's weights-only reader does the reading. Names of well-known frameworks and of plain containers are given to it as
placeholders that keep nothing and do nothing; every other name is refused and named. Nothing is ever imported for a
file, and nothing in it is called.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gkd.core.errors import CheckpointError
from gkd.core.files import GIB, check_torch_file, restricted_load_torch

MAX_BYTES = 16 * GIB
# A checkpoint with a network, an optimizer and a scheduler has some hundred thousand.
MAX_INSTRUCTIONS = 5_000_000
# A file of the old kind holds that many pickles before its numbers.
_NUM_PICKLES = 5
_UNREAD_MODULES = (
    "addict",
    "easydict",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "ml_collections",
    "numpy",
    "omegaconf",
    "pytorch_lightning",
    "torch.amp",
    "torch.cuda.amp",
    "torch.optim",
    "yacs",
)
_UNREAD_NAMES = {
    "argparse.Namespace",
    "builtins.dict",
    "builtins.float",
    "builtins.frozenset",
    "builtins.int",
    "builtins.list",
    "builtins.slice",
    "builtins.str",
    "builtins.tuple",
    "collections.defaultdict",
    "collections.deque",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "functools.partial",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "types.SimpleNamespace",
    "typing.Any",
    "uuid.UUID",
}
_READ_NAMES = {
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
}
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(frozen=True)
class TorchArchive:
    """What a file holds, nothing in it checked, and the names of the objects that were left unread."""

    content: Any
    unread: tuple[str, ...] = ()


class _Unread:
    """Stands for an object of a framework: takes any arguments and any state, and keeps none."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _UnreadMapping(_Unread):
    """Stands for a kind of dict, whose items the reader sets one by one on a plain one."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        return OrderedDict()


class _UnreadList(_Unread):
    """Stands for a kind of list, to which the reader appends."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        return []


def read_torch_archive(path: Path, max_bytes: int = MAX_BYTES) -> TorchArchive:
    """What a file of `torch.save` holds, on the CPU.

    Raises:
        CheckpointError: missing, a folder, too large, a text or HTML page, a TorchScript program, truncated, or a file
            that asks for a name which no weights need.
    """
    check_torch_file(path, max_bytes)
    names = _names(path)
    unread = sorted(name for name in names if _is_unread(name))
    for name in sorted(names):
        if not (_is_unread(name) or name.startswith("torch.") or name in _READ_NAMES):
            raise CheckpointError(
                f"{path}: refused, since loading it would run `{name[:200]}`; nothing was run; "
                "ask its author for a file of plain tensors (a state_dict)"
            )
    placeholders = [_placeholder(name) for name in unread]
    return TorchArchive(restricted_load_torch(path, max_bytes, placeholders), tuple(unread))


def _is_unread(name: str) -> bool:
    return name in _UNREAD_NAMES or any(name.startswith(f"{module}.") for module in _UNREAD_MODULES)


def _placeholder(name: str) -> type[_Unread]:
    module, _, last = name.rpartition(".")
    base: type[_Unread] = _Unread
    if last.lower().endswith(("dict", "cfgnode")):
        base = _UnreadMapping
    elif last in ("list", "deque"):
        base = _UnreadList
    # torch looks a class up by these two.
    return type(last, (base,), {"__module__": module, "__qualname__": last})


def _names(path: Path) -> set[str]:
    """All names that the pickles of a file ask for; where it is damaged, those before the damage."""
    names: set[str] = set()
    budget = iter(range(MAX_INSTRUCTIONS))
    for stream in _pickles(path):
        with stream as opened:
            try:
                for _ in range(_NUM_PICKLES):
                    _collect(opened, names, budget, path)
            except CheckpointError:
                raise
            except Exception:  # what is wrong with a damaged file is told by the one who reads it
                continue
    return names


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # as torch tells the two kinds apart
    if not is_zip:
        yield path.open("rb")
        return
    with _opened(path) as archive:
        entries = [entry for entry in archive.infolist() if Path(entry.filename).name == "data.pkl"]
        if any(Path(entry.filename).name == "constants.pkl" for entry in archive.infolist()):
            raise CheckpointError(
                f"{path}: is a TorchScript program, not weights; save its state_dict() by torch.save, or export the "
                "network to ONNX"
            )
        for entry in entries:
            yield archive.open(entry)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error}); save or download it again") from error
    with archive:
        yield archive


def _collect(stream: IO[bytes], names: set[str], budget: Iterator[int], path: Path) -> None:
    """Add the names in one pickle."""
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):
        if next(budget, None) is None:
            raise CheckpointError(f"{path}: has more than {MAX_INSTRUCTIONS:,} pickle instructions; it is no weights")
        if opcode.name in ("GLOBAL", "INST"):
            names.add(_full_name(*str(argument).split(" ", 1)))
        elif opcode.name == "STACK_GLOBAL" and len(texts) >= 2:
            names.add(_full_name(*texts[-2:]))
        elif isinstance(argument, str):
            texts = [*texts[-1:], argument]


def _full_name(module: str, name: str) -> str:
    return f"{_OLD_MODULES.get(module, module)}.{name}"
