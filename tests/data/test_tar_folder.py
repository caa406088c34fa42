"""Which addresses are read from, and which are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.data.tar_folder import TarFolder, find_scheme
from tests.data.tar_server import serve


@pytest.mark.parametrize(
    "address",
    [
        "pipe:cat /etc/passwd",
        "pipe://cat /etc/passwd",
        "PIPE:ls",
        "file:///etc",
        "ftp://host/folder",
        "simplecache::http://host/folder",
        "http:/host/folder",
        "local://x",
        "ssh://host/folder",
    ],
)
def test_schemes_that_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"shards are not read from `.*`; allowed are a folder and http, https, s3, "):
        TarFolder(address)


@pytest.mark.parametrize(
    "address", ["http://", "http:///", "http://host/a b", "http://host/a?x=1", "s3://a::pipe", "https://host/#a"]
)
def test_addresses_that_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a folder; it may have no spaces"):
        TarFolder(address)


def test_passwords_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        TarFolder("https://me:secret@host/folder")
    assert "keep user names and passwords out of the address" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_find_scheme(tmp_path: Path) -> None:
    assert find_scheme("HTTPS://host/a@b") == "https"
    assert find_scheme("s3://bucket/a/b") == "s3"
    assert find_scheme("http://[::1]:8000/a") == "http"
    assert find_scheme(tmp_path) is None
    assert find_scheme("a/b:c") is None


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: no such folder; give a folder of tar shards or its address"):
        TarFolder(tmp_path / "none")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ImportError("no s3fs")

    monkeypatch.setattr("fsspec.open", fail)
    with pytest.raises(DataError, match=r"s3://bucket/set/index.json: `s3fs` is needed .*; pip install s3fs"):
        TarFolder("s3://bucket/set").read("index.json", 10)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "pipe:ls"])
def test_a_server_cannot_send_us_elsewhere(tmp_path: Path, target: str) -> None:
    with serve(tmp_path) as served:
        served.redirect = target
        with pytest.raises(DataError, match=r"a.tar: cannot be read: "):
            TarFolder(served.address).read("a.tar", 10)
        assert served.requests["a.tar"] == 1


def test_redirects_within_http_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"content")
    with serve(tmp_path) as served, serve(tmp_path) as other:
        other.redirect = f"{served.address}/a.tar"
        assert TarFolder(other.address).read("a.tar", 10) == b"content"


def test_sizes_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    with serve(tmp_path) as served:
        for folder in (TarFolder(tmp_path), TarFolder(served.address, num_attempts=1)):
            assert folder.read("a.tar", 10, exact=True) == b"0123456789"
            assert folder.read("a.tar", 11) == b"0123456789"
            with pytest.raises(DataError, match="9 bytes"):
                folder.read("a.tar", 9)
            with pytest.raises(Exception, match="ends after 10 of 11 bytes"):
                folder.read("a.tar", 11, exact=True)
