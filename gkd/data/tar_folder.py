"""The folder that tar shards lie in: on a disk, behind HTTP, or in a cloud store.

Nothing but a plain file name ever goes into an address, and no address ever reaches a shell.
"""

from __future__ import annotations

import logging
import re
import time
import urllib.error
import urllib.request
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, cast

from gkd.core.errors import ConfigError, DataError, GkdError
from gkd.core.files import read_bounded

# What each scheme that fsspec opens needs to be installed.
CLOUD_SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}
HTTP_SCHEMES = ("http", "https")

_log = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 20
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 30.0
# Another try may help; any other 4xx answer stays what it is.
_PASSING_STATUSES = frozenset({408, 425, 429})


class TarFolder:
    """Reads whole files of a folder.

    Args:
        path: a folder, or the address of one: http, https, or a cloud store that fsspec knows (s3, gs, az, hf …).
        timeout_seconds: how long a connection over HTTP may be silent.
        num_attempts: how often a file of an address is asked for before an error is raised; pauses between tries grow
            from 0.5 seconds to twice as long each time, at most 30.

    Raises:
        ConfigError: an address of another scheme, or one with a password, a query or a chain of file systems in it.
        DataError: no such folder on the disk.
    """

    def __init__(self, path: str | Path, *, timeout_seconds: float = 60.0, num_attempts: int = 5) -> None:
        if not timeout_seconds > 0:
            raise ConfigError(f"timeout_seconds must be above 0, got {timeout_seconds}")
        if num_attempts < 1:
            raise ConfigError(f"num_attempts must be at least 1, got {num_attempts}")
        self._address = str(path).rstrip("/") or "/"
        self._scheme = find_scheme(path)
        self._timeout_seconds = timeout_seconds
        self._num_attempts = num_attempts
        if self._scheme is None and not Path(path).is_dir():
            raise DataError(f"{path}: no such folder; give a folder of tar shards or its address")

    def __str__(self) -> str:
        return self._address

    @property
    def is_remote(self) -> bool:
        """Whether files come over a network."""
        return self._scheme is not None

    def where(self, name: str) -> str:
        """The path or address of the file `name`."""
        return f"{self._address}/{name}"

    def read(self, name: str, max_bytes: int, *, exact: bool = False) -> bytes:
        """The whole content of the file `name`.

        Args:
            max_bytes: how many bytes it may have.
            exact: it must have just as many.

        Raises:
            DataError: missing, not allowed to be read, larger or, on a disk, smaller.
            GkdError: still no answer, or only a part of the file, after `num_attempts` over a network.
        """
        if self._scheme is None:
            content = read_bounded(self.where(name), max_bytes)
            if exact and len(content) < max_bytes:
                raise DataError(f"{self.where(name)}: {_truncated(len(content), max_bytes)}; copy or make it again")
            return content
        return self._read_remote(name, max_bytes, exact)

    def _read_remote(self, name: str, max_bytes: int, exact: bool) -> bytes:
        pause_seconds, reason = _FIRST_PAUSE_SECONDS, ""
        for attempt in range(1, self._num_attempts + 1):
            try:
                return self._fetch(name, max_bytes, exact)
            except (OSError, HTTPException) as error:
                reason = _reason(error)
                if not _may_pass(error):
                    raise DataError(f"{self.where(name)}: cannot be read: {reason}") from error
            if attempt < self._num_attempts:
                _log.warning("%s: %s; trying again in %.1f seconds", self.where(name), reason, pause_seconds)
                time.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _MAX_PAUSE_SECONDS)
        # No DataError: a server that is away is no bad record, which training may be told to leave out.
        raise GkdError(
            f"{self.where(name)}: cannot be read after {self._num_attempts} attempts: {reason}; check the network and "
            "the server, then resume"
        )

    def _fetch(self, name: str, max_bytes: int, exact: bool) -> bytes:
        content = bytearray()
        with closing(self._open(self.where(name))) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                content += chunk
                if len(content) > max_bytes:
                    raise DataError(
                        f"{self.where(name)}: has more than the {max_bytes:,} bytes that it should have; the index "
                        "belongs to other shards, or the answer is another file"
                    )
            expected = max_bytes if exact else _announced_length(stream)
        # A dropped connection looks like the end of the file.
        if expected is not None and len(content) < expected:
            raise ConnectionError(_truncated(len(content), expected))
        return bytes(content)

    def _open(self, address: str) -> BinaryIO:
        if self._scheme in HTTP_SCHEMES:
            return cast(BinaryIO, _opener().open(address, timeout=self._timeout_seconds))
        import fsspec  # type: ignore[import-untyped,unused-ignore]

        try:
            return cast(BinaryIO, fsspec.open(address, "rb").open())
        except ImportError as error:
            package = CLOUD_SCHEMES[str(self._scheme)]
            raise DataError(f"{address}: `{package}` is needed for this address; pip install {package}") from error


def find_scheme(path: str | Path) -> str | None:
    """The scheme of an address, or None for a path on the disk.

    Raises:
        ConfigError: see `TarFolder`.
    """
    text = str(path)
    allowed = f"allowed are a folder and {', '.join((*HTTP_SCHEMES, *CLOUD_SCHEMES))}"
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)(::?)", text)
    if match is None:
        return None
    scheme = match[1].lower()
    if scheme not in (*HTTP_SCHEMES, *CLOUD_SCHEMES) or not text[match.end(1) :].startswith("://"):
        raise ConfigError(f"{text!r}: shards are not read from `{match[0]}`; {allowed}")
    rest = text[match.end(1) + 3 :]
    is_chain = "::" in rest and scheme not in HTTP_SCHEMES
    if re.search(r"[\s?#\x00-\x1f]", rest) or is_chain or not rest.strip("/"):
        raise ConfigError(f"{text!r}: not the address of a folder; it may have no spaces, `?`, `#` or `::`")
    if "@" in rest.partition("/")[0]:
        raise ConfigError(f"{scheme}://…@…: keep user names and passwords out of the address: it is written to logs")
    return scheme


def _opener() -> urllib.request.OpenerDirector:
    # Unlike the default one it knows no file: and ftp:, so that a server cannot redirect there.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _announced_length(stream: Any) -> int | None:
    length = stream.headers.get("Content-Length") if hasattr(stream, "headers") else None
    return int(length) if length is not None and length.isdecimal() else None


def _may_pass(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return error.code >= 500 or error.code in _PASSING_STATUSES
    if isinstance(error, urllib.error.URLError):
        return isinstance(error.reason, OSError)
    return not isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return (str(reason) or type(error).__name__).splitlines()[0]


def _truncated(num_bytes: int, expected: int) -> str:
    return f"ends after {num_bytes:,} of {expected:,} bytes"
