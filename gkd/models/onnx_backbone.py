"""Frozen networks from ONNX files, run by onnxruntime: `onnx:<path>`.

Shapes: N images, D embedding dimension, H x W pixels.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd.core.errors import CheckpointError, ConfigError
from gkd.models.backbone import MAX_SIDE, MIN_SIDE, Backbone, check_integers
from gkd.models.onnx_file import MAX_EMBEDDING_DIM, MIN_EMBEDDING_DIM, read_onnx, with_free_batch

logger = logging.getLogger(__name__)

_DEFAULT_SIZE = (112, 112)
_NUM_PROBES = 3
_MAX_RELATIVE_DIFFERENCE = 1e-3  # L2, row by row: fp32 sums in another order stay far below
_FATAL = 4  # onnxruntime's log severity

Rows = npt.NDArray[np.float32]


class OnnxBackbone(Backbone):
    """A frozen network from an ONNX file. It has no parameters: it can teach and be evaluated, never be trained.

    A batch fixed at 1 in the file is opened, and the opened network is used where its embeddings of random images
    differ from the file's own by at most 1e-3 of their length; else images are embedded one by one. Images go through
    another fixed batch in groups of that size, the last group filled up with copies of its last image.

    Args:
        path: the file.
        embedding_dim: D; None takes the file's.
        input_size: (H, W) in pixels; None takes the file's, or 112 x 112 where the file leaves it open.

    Attributes:
        sha256: of the file, hexadecimal.
        path: the file.
        batch_size: images that the network takes at once; None is any number.

    Raises:
        ConfigError: a setting that contradicts the file.
        CheckpointError: a file that is missing, damaged, unsafe or no face network.
    """

    def __init__(
        self, *, path: str | Path, embedding_dim: int | None = None, input_size: tuple[int, int] | None = None
    ) -> None:
        path = Path(path)
        content, graph = read_onnx(path)
        size = _input_size(path, (graph.height, graph.width), input_size)
        super().__init__(embedding_dim=MIN_EMBEDDING_DIM, input_size=size)
        self.path = path
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.batch_size = graph.batch_size
        self._graph = graph
        self._content = content
        self._sessions: dict[torch.device, Any] = {}
        self.embedding_dim = self._probe(embedding_dim)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> OnnxBackbone:
        """Stay in eval mode; `mode` is ignored."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Converted images (N, 3, H, W) to raw embeddings (N, D), fp32 on the images' device, without gradient.

        Raises:
            ConfigError: images of another shape.
            CheckpointError: the network fails on them, or gives NaN or infinite values.
        """
        height, width = self.input_size
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, height, width):
            raise ConfigError(f"{self.path}: takes images (N, 3, {height}, {width}), got {tuple(images.shape)}")
        if len(images) == 0:
            return torch.empty((0, self.embedding_dim), device=images.device)
        pixels = images.detach().to("cpu", torch.float32).contiguous().numpy()
        rows = self._embed(self._session(images.device), pixels, self.batch_size)
        return torch.from_numpy(rows).to(images.device)

    def _embed(self, session: Any, pixels: Rows, batch_size: int | None) -> Rows:
        size = batch_size or len(pixels)
        chunks = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        missing = size - len(chunks[-1])
        chunks[-1] = np.concatenate([chunks[-1], np.repeat(chunks[-1][-1:], missing, axis=0)])
        rows = np.concatenate([self._run(session, chunk) for chunk in chunks])[: len(pixels)]
        is_unfit = ~np.isfinite(rows).all(axis=1)
        if is_unfit.any():
            raise CheckpointError(
                f"{self.path}: gives NaN or infinite embeddings for {int(is_unfit.sum())} of {len(rows)} images; the "
                "file is damaged, or its input conversion is wrong"
            )
        return rows

    def _run(self, session: Any, pixels: Rows) -> Rows:
        given = pixels.astype(np.float16) if self._graph.is_half else pixels
        try:
            (rows,) = session.run([self._graph.output_name], {self._graph.input_name: given})
        except Exception as error:  # onnxruntime's exceptions share no other base
            raise CheckpointError(f"{self.path}: the network cannot be run: {_first_line(error)}") from error
        if rows.ndim != 2 or len(rows) != len(pixels):
            raise CheckpointError(
                f"{self.path}: gives {rows.shape} for {len(pixels)} images, but embeddings (N, D) are needed"
            )
        embeddings: Rows = rows.astype(np.float32, copy=False)
        return embeddings

    def _session(self, device: torch.device) -> Any:
        if device not in self._sessions:
            has_cuda = "CUDAExecutionProvider" in _available_providers()
            if device.type == "cpu" or has_cuda:
                self._sessions[device] = _open(self.path, self._content, device)
            else:
                logger.warning("%s: onnxruntime has no CUDA here, so this network runs on the CPU", self.path)
                self._sessions[device] = self._session(torch.device("cpu"))
        return self._sessions[device]

    def _probe(self, wanted_dim: int | None) -> int:
        """Run the network on random images: find D, and how many images it takes at once."""
        images = np.random.default_rng(0).standard_normal((_NUM_PROBES, 3, *self.input_size)).astype(np.float32)
        images += np.linspace(-0.5, 0.5, _NUM_PROBES, dtype=np.float32)[:, None, None, None]
        expected = self._embed(self._session(torch.device("cpu")), images, self.batch_size or 1)
        embedding_dim = int(expected.shape[1])
        if not MIN_EMBEDDING_DIM <= embedding_dim <= MAX_EMBEDDING_DIM:
            raise CheckpointError(
                f"{self.path}: gives embeddings of {embedding_dim} numbers, but a face network gives "
                f"{MIN_EMBEDDING_DIM} to {MAX_EMBEDDING_DIM:,}"
            )
        if wanted_dim not in (None, embedding_dim):
            raise ConfigError(
                f"embedding_dim {wanted_dim} was given, but {self.path} gives embeddings of {embedding_dim}; leave "
                "embedding_dim out"
            )
        if self.batch_size in (None, 1):
            self._free_batch(images, expected)
        return embedding_dim

    def _free_batch(self, images: Rows, expected: Rows) -> None:
        """Take any number of images at once where that gives the embeddings that single images give."""
        cpu = torch.device("cpu")
        content, session = self._content, self._sessions[cpu]
        try:
            if self.batch_size == 1:
                content = with_free_batch(content)
                session = _open(self.path, content, cpu)
            difference = _relative_difference(self._run(session, images), expected)
            reason = f"by {difference:.1e} of their length"
        except CheckpointError as error:
            difference, reason = float("inf"), str(error)
        if difference <= _MAX_RELATIVE_DIFFERENCE:
            self.batch_size, self._content, self._sessions = None, content, {cpu: session}
            return
        self.batch_size = 1
        logger.info("%s: embeds images one by one, since a batch of them gives other embeddings: %s", self.path, reason)


def _input_size(path: Path, fixed: tuple[int | None, int | None], wanted: tuple[int, int] | None) -> tuple[int, int]:
    """The size in the file where it fixes one, else the one that is wanted, else the default."""
    if wanted is None:
        return fixed[0] or _DEFAULT_SIZE[0], fixed[1] or _DEFAULT_SIZE[1]
    height, width = check_integers("input_size", wanted, 2, MIN_SIDE, MAX_SIDE)
    if fixed[0] not in (None, height) or fixed[1] not in (None, width):
        text = " x ".join("any" if side is None else str(side) for side in fixed)
        raise ConfigError(f"input_size {[height, width]} was given, but {path} takes images of {text} pixels")
    return height, width


def _open(path: Path, content: bytes, device: torch.device) -> Any:
    """A session on the CPU or, where `device` says so, on a GPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Waiting threads that spin would take the cores from torch, which runs in turn with this network.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        # As exact as torch's own convolutions are.
        cuda = {"device_id": device.index or 0, "use_tf32": int(torch.backends.cudnn.allow_tf32)}
        providers.insert(0, ("CUDAExecutionProvider", cuda))
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise CheckpointError(f"{path}: onnxruntime cannot load it: {_first_line(error)}") from error
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        logger.warning("%s: onnxruntime cannot use CUDA here, so this network runs on the CPU", path)
    return session


def _available_providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _relative_difference(rows: Rows, expected: Rows) -> float:
    if rows.shape != expected.shape:
        return float("inf")
    # In float64, where the square of no float32 overflows.
    exact = expected.astype(np.float64)
    differences, norms = np.linalg.norm(rows - exact, axis=1), np.linalg.norm(exact, axis=1)
    return float((differences / np.maximum(norms, np.finfo(np.float32).tiny)).max())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
