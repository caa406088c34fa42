"""A network's fingerprint."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def network_digest(backbone: nn.Module) -> str:
    """SHA-256 (hex) of a network's weights: of the file of a foreign one, else of all tensors with their names."""
    file_digest = getattr(backbone, "sha256", None)
    if file_digest is not None:
        return str(file_digest)
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
