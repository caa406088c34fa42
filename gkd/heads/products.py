"""Matrix products whose inputs may be bf16 while sums and results are fp32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16"]


def matmul(left: Tensor, right: Tensor, precision: Precision, out: Tensor | None = None) -> Tensor:
    """left (n, k) @ right (k, m), in the type of the inputs; for bf16 the inputs are rounded, nothing else is."""
    if precision == "fp32":
        return torch.mm(left, right, out=out) if out is not None else torch.mm(left, right)
    if left.is_cuda and _has_out_dtype:
        product = torch.mm(left.bfloat16(), right.bfloat16(), out_dtype=torch.float32)
        return product if out is None else out.copy_(product)
    # Products of two bf16 numbers are exact in fp32 (and in the tensor cores' TF32), so this is the same.
    rounded = left.bfloat16().to(left.dtype), right.bfloat16().to(right.dtype)
    return torch.mm(*rounded, out=out) if out is not None else torch.mm(*rounded)


# Came with torch 2.8, for CUDA.
_has_out_dtype = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
