"""Kept embeddings: a second evaluation runs nothing, nothing wrong is ever taken, and the folder stays small."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from gkd.core.distributed import end_process
from gkd.core.errors import ConfigError, DataError
from gkd.inference.embed import evaluate_pairs
from gkd.inference.kept_files import EmbeddingKey, read_kept, write_kept
from gkd.inference.kept_pair_embeddings import (
    evaluate_pairs_kept,
    images_digest,
    kept_embeddings,
    whole_network_digest,
)
from gkd.inference.views import VIEWS, Rows, View
from gkd.models import InputSpec
from tests.inference.test_embed import Pairs, make_backbone, make_images

KEY = EmbeddingKey(
    network="n", input="rgb", images="i", num_images=5, batch_size=2, precision="fp32", view="image", software="torch"
)
ROWS = np.arange(30, dtype=np.float32).reshape(5, 6)
PAIRS = Pairs(make_images(40), np.arange(20) % 2 == 0)


def counting(backbone: nn.Module) -> list[int]:
    """Grows by the images of each forward pass."""
    passes: list[int] = []
    backbone.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    return passes


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_second_evaluation_runs_nothing_and_is_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, backbone = tmp_path / "new" / "kept", make_backbone()
    expected = evaluate_pairs(backbone, InputSpec(), PAIRS, batch_size=7)
    passes = counting(backbone)
    first = evaluate_pairs_kept(backbone, InputSpec(), PAIRS, batch_size=7, folder=folder)
    assert passes == [7] * 12
    monkeypatch.setattr("gkd.inference.decoding.decode_image", lambda *_: pytest.fail("decoded an image"))
    second = evaluate_pairs_kept(backbone, InputSpec(), PAIRS, batch_size=7, folder=folder)
    assert passes == [7] * 12
    for result in (first, second):
        assert result == expected
        np.testing.assert_array_equal(result.distances, expected.distances)
    assert len(files_of(folder)) == 2


def test_views_are_kept_apart(tmp_path: Path) -> None:
    backbone = make_backbone()
    passes = counting(backbone)
    evaluate_pairs_kept(backbone, InputSpec(), PAIRS, batch_size=40, folder=tmp_path, flip=False)
    assert len(passes) == 1
    for flip in ("sum", "norm_weighted", "none"):
        kept = evaluate_pairs_kept(backbone, InputSpec(), PAIRS, batch_size=40, folder=tmp_path, flip=flip)
        assert len(passes) == 2  # the mirror images were missing once
        exact = evaluate_pairs(make_backbone(), InputSpec(), PAIRS, batch_size=40, flip=flip)
        np.testing.assert_array_equal(kept.distances, exact.distances)


def test_labels_do_not_matter_to_embeddings(tmp_path: Path) -> None:
    backbone = make_backbone()
    passes = counting(backbone)
    evaluate_pairs_kept(backbone, InputSpec(), PAIRS, folder=tmp_path)
    others = Pairs(PAIRS.images, ~PAIRS.is_same)
    kept = evaluate_pairs_kept(backbone, InputSpec(), others, folder=tmp_path)
    assert len(passes) == 2
    assert kept == evaluate_pairs(make_backbone(), InputSpec(), others)


def _other_weights(backbone: nn.Module) -> None:
    with torch.no_grad():
        backbone.fc.bias[0] += 1e-3


def _other_epsilon(backbone: nn.Module) -> None:
    backbone.norm.eps = 1e-3


@pytest.mark.parametrize("change", [_other_weights, _other_epsilon])
def test_another_network_is_computed(tmp_path: Path, change: Callable[[nn.Module], None]) -> None:
    evaluate_pairs_kept(make_backbone(), InputSpec(), PAIRS, folder=tmp_path)
    backbone = make_backbone()
    change(backbone)
    passes = counting(backbone)
    kept = evaluate_pairs_kept(backbone, InputSpec(), PAIRS, folder=tmp_path)
    assert len(passes) == 2
    np.testing.assert_array_equal(kept.distances, evaluate_pairs(backbone, InputSpec(), PAIRS).distances)


@pytest.mark.parametrize(
    ("spec", "images", "settings"),
    [
        (InputSpec(color="bgr"), PAIRS.images, {}),
        (InputSpec(mean=(127.5, 127.5, 128.0)), PAIRS.images, {}),
        (InputSpec(), [*PAIRS.images[1::-1], *PAIRS.images[2:]], {}),
        (InputSpec(), PAIRS.images, {"batch_size": 63}),
        (InputSpec(), PAIRS.images, {"precision": "bf16"}),
    ],
    ids=["colour", "mean", "order", "batch", "precision"],
)
def test_whatever_else_changes_is_computed(tmp_path: Path, spec: InputSpec, images: Any, settings: Any) -> None:
    evaluate_pairs_kept(make_backbone(), InputSpec(), PAIRS, folder=tmp_path)
    backbone = make_backbone()
    passes = counting(backbone)
    evaluate_pairs_kept(backbone, spec, Pairs(images, PAIRS.is_same), folder=tmp_path, **settings)
    assert len(passes) == 2


def test_without_a_folder_nothing_is_kept() -> None:
    backbone = make_backbone()
    passes = counting(backbone)
    for _ in range(2):
        evaluate_pairs_kept(backbone, InputSpec(), PAIRS, folder=None)
    assert len(passes) == 4


def test_digests_tell_images_and_networks_apart() -> None:
    digests = [images_digest(each) for each in ([b"a", b"b"], [b"ab"], [b"b", b"a"], [b"ab", b""])]
    assert len(set(digests)) == 4
    small, large = make_backbone(), make_backbone()
    large.input_size = (21, 16)
    assert whole_network_digest(small) == whole_network_digest(make_backbone()) != whole_network_digest(large)


def test_files_read_back_bit_for_bit(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    rows[0, 0], rows[1, 1] = -0.0, 1e-40
    write_kept(tmp_path, {KEY: rows}, 10**6)
    found = read_kept(tmp_path, KEY)
    assert found is not None
    assert found.dtype == np.float32
    assert found.tobytes() == rows.tobytes()
    assert [path.name for path in files_of(tmp_path)] == [KEY.file_name]
    write_kept(tmp_path, {replace(KEY, view="mirror"): rows[:, ::2]}, 10**6)  # not contiguous
    np.testing.assert_array_equal(read_kept(tmp_path, replace(KEY, view="mirror")), rows[:, ::2])


def _edited(**changes: Any) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        header, _, rest = content.partition(b"\n")
        return json.dumps({**json.loads(header), **changes}).encode() + b"\n" + rest

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "its first line is no JSON"),
        (lambda content: content[:50], "its first line is no JSON"),
        (lambda content: b"\x80\x04" + content, "its first line is no JSON"),
        (lambda content: b"[" * 16000, "its first line is no JSON"),
        (lambda content: b"[]\n" + content, "it is no file of kept embeddings of this version"),
        (lambda content: content[:-1], r"\d+ bytes instead of \d+"),
        (lambda content: content + b"\0", r"\d+ bytes instead of \d+"),
        (lambda content: content[:-1] + b"\x7f", "its content does not match its SHA-256"),
        (_edited(format_version=2), "of this version"),
        (_edited(sha256=None), "its content does not match its SHA-256"),
        (_edited(key={}), "it is of another network, other images or other settings"),
        (_edited(embedding_dim=-6), "an embedding dimension of -6"),
        (_edited(embedding_dim="6"), "an embedding dimension of '6'"),
        (_edited(embedding_dim=1 << 60), r"bytes instead of \d{18}"),
    ],
)
def test_damaged_files_are_made_anew_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes], message: str
) -> None:
    write_kept(tmp_path, {KEY: ROWS}, 10**6)
    path = tmp_path / KEY.file_name
    path.write_bytes(damage(path.read_bytes()))
    rows = kept_embeddings(tmp_path, lambda: KEY, lambda views: {"image": ROWS}, views=("image",))
    np.testing.assert_array_equal(rows["image"], ROWS)
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert f"kept embeddings {path} cannot be used and are made anew" in caplog.text
    assert re.search(message, caplog.text)
    rows = kept_embeddings(tmp_path, lambda: KEY, lambda views: pytest.fail("computed"), views=("image",))
    np.testing.assert_array_equal(rows["image"], ROWS)


def test_the_oldest_make_room(tmp_path: Path) -> None:
    keys = [replace(KEY, images=str(number)) for number in range(4)]
    (tmp_path / "notes.embeddings").write_bytes(bytes(5000))  # not ours
    write_kept(tmp_path, {keys[0]: ROWS}, 10**6)
    size = (tmp_path / keys[0].file_name).stat().st_size
    for number, key in enumerate(keys[:3]):
        write_kept(tmp_path, {key: ROWS}, 3 * size)
        os.utime(tmp_path / key.file_name, (number + 1, number + 1))
    half_written = tmp_path / f".{keys[0].file_name[:64]}.0123abcd.writing.embeddings"
    half_written.write_bytes(bytes(10))
    os.utime(half_written, (0, 0))
    assert read_kept(tmp_path, keys[0]) is not None  # now it is the newest
    write_kept(tmp_path, {keys[3]: ROWS}, 3 * size)
    assert {path.name for path in files_of(tmp_path)} == {keys[n].file_name for n in (0, 2, 3)} | {"notes.embeddings"}


def test_what_is_larger_than_the_room_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_kept(tmp_path, {KEY: ROWS}, 10**6)
    other = replace(KEY, images="other")
    write_kept(tmp_path, {other: ROWS}, 100)
    assert "embeddings are not kept in" in caplog.text
    assert "of the 100 allowed" in caplog.text
    assert [path.name for path in files_of(tmp_path)] == [KEY.file_name]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    rows = kept_embeddings(tmp_path / "file", lambda: KEY, lambda views: {"image": ROWS}, views=("image",))
    np.testing.assert_array_equal(rows["image"], ROWS)
    assert f"embeddings are not kept in {tmp_path / 'file'}: " in caplog.text


def test_settings_and_failures_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_bytes must be at least 1, got 0"):
        evaluate_pairs_kept(make_backbone(), InputSpec(), PAIRS, folder=tmp_path, max_bytes=0)
    broken = Pairs([*PAIRS.images[:7], b"", *PAIRS.images[8:]], PAIRS.is_same)
    with pytest.raises(DataError, match=r"my\.bin, image 7 \(pair 3\)"):
        evaluate_pairs_kept(make_backbone(), InputSpec(), broken, folder=tmp_path, name="my.bin")
    assert files_of(tmp_path) == []


def _evaluate_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    backbone = make_backbone()
    passes = counting(backbone)
    own = Path(folder) / ("kept" if rank == 0 else "another")  # only that of rank 0 is used
    outcomes = []
    for _ in range(2):
        result = evaluate_pairs_kept(backbone, InputSpec(), PAIRS, batch_size=7, folder=own)
        outcomes.append((torch.from_numpy(result.distances), len(passes)))

    def fail() -> EmbeddingKey:
        raise DataError("no key")

    def compute(views: tuple[View, ...]) -> dict[View, Rows]:
        raise AssertionError("computed")

    try:
        kept_embeddings(own, fail, compute, views=VIEWS)
    except Exception as error:
        outcomes.append((torch.empty(0), f"{type(error).__name__}: {error}"))
    torch.save(outcomes, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
    end_process(0)


def test_two_ranks_read_what_the_first_keeps(tmp_path: Path) -> None:
    mp.spawn(_evaluate_on_rank, args=(str(tmp_path),), nprocs=2, join=True)
    expected = evaluate_pairs(make_backbone(), InputSpec(), PAIRS, batch_size=7).distances
    for rank in range(2):
        outcomes = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert [each[1] for each in outcomes] == [6, 6, "DataError: no key"]
        for distances, _ in outcomes[:2]:
            np.testing.assert_array_equal(distances.numpy(), expected)
    assert len(files_of(tmp_path / "kept")) == 2
    assert not (tmp_path / "another").exists()
