"""The Triton kernels: their cases through the interpreter and on CUDA; compilation for GPUs that need not be here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gkd.core import class_chunks_triton
from gkd.core.class_chunks_triton import is_available

CASES = Path(__file__).with_name("triton_cases.py")
ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# What stands in the signature of a kernel: a pointer's type where it is not fp32, and constants by kernel.
POINTERS = {"cutoff_column": "*i64", "log_normaliser": "*fp64", "masses": "*fp64"}
RUNNING = {"total": "*fp64", "gap": "*fp64", "count": "*i64"}
GROUPED = {"ranked_is_student": True, "has_all_ties": False}
NO_TEACHER = dict.fromkeys(["teacher", "coefficients", "group_lse", "cutoff_value", "cutoff_column"])
KERNELS = [
    ("sum_tile", {}, {}),
    ("sum_groups_of_tile", {}, GROUPED),
    ("sum_groups_of_tile", {}, {"ranked_is_student": False, "has_all_ties": True, "cutoff_column": None}),
    ("merge_tiles", RUNNING, {"is_grouped": True, "block": 128}),
    ("merge_tiles", RUNNING, {"is_grouped": False, "block": 1, "tile_gap": None, "tile_count": None, "gap": None,
                              "count": None}),
    ("gradient_of_tile", {}, {"is_distilled": True, **GROUPED}),
    ("gradient_of_tile", {}, {"is_distilled": False, **GROUPED, **NO_TEACHER}),
    ("mass_of_columns", {}, {"num_steps": 8, "block_rows": 8}),
]  # fmt: skip
BLOCKS = {
    "sum_tile": (class_chunks_triton._SUM_BLOCK, 1),
    "sum_groups_of_tile": (class_chunks_triton._GROUP_BLOCK, 1),
    "merge_tiles": (1, 1),
    "gradient_of_tile": (class_chunks_triton._GRADIENT_BLOCK, class_chunks_triton._GRADIENT_WARPS),
    "mass_of_columns": (class_chunks_triton._MASS_BLOCK, class_chunks_triton._MASS_WARPS),
}
# What a launch tells the compiler: new tensors begin at, and full chunks' strides are, multiples of 16.
ALIGNED = {"scores", "student", "teacher", "out", "row_stride", "student_stride", "teacher_stride", "out_stride"}


def is_recent_triton() -> bool:
    try:
        major, minor = importlib.metadata.version("triton").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return False
    return (int(major), int(minor)) >= (3, 3)


def run_cases(environment: dict[str, str]) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", str(CASES)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert re.search(r"\d\d passed", finished.stdout), finished.stdout


@needs_triton
def test_the_interpreted_kernels_pass_their_cases() -> None:
    run_cases({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})


@pytest.mark.gpu
@needs_triton
def test_the_compiled_kernels_pass_their_cases() -> None:
    run_cases({"TRITON_INTERPRET": "0"})


@needs_triton
@pytest.mark.skipif(not is_recent_triton(), reason="before 3.3 triton's compiler is called in another way")
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_and_spills_nothing(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, pointers, constants in KERNELS:
        ptx = compiled(name, POINTERS | pointers, constants, capability)
        assert "st.local" not in ptx
        if name != "merge_tiles":
            assert re.search(r"ld\.global\S*\.v4\.b32", ptx), name


def compiled(name: str, pointers: dict[str, str], constants: dict[str, object], capability: int) -> str:
    """A kernel's PTX for full-sized chunks, assembled too; as a launch would have it, but without a device."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gkd.core import triton_kernels

    kernel, (block, num_warps) = getattr(triton_kernels, name), BLOCKS[name]
    constants = {"block": block, **constants}
    signature, attributes = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        signature[argument] = "constexpr" if argument in constants else pointers.get(argument, type_of(argument))
        if argument in ALIGNED or argument == "num_columns":
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": num_warps, "enable_fp_fusion": True}
    text: str = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]
    return text


def type_of(argument: str) -> str:
    if argument == "inverse_temperature":
        return "fp32"
    is_number = argument.startswith("num_") or argument.endswith("_stride")
    return "i32" if is_number else "*fp32"


@needs_triton
def test_the_kernels_are_for_cuda_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 1)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not is_available(cpu)
    assert is_available(cuda)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert is_available(cpu)


def test_without_triton_the_module_loads_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not is_available(torch.device("cpu"))
    assert not is_available(torch.device("cuda"))


def test_this_module_does_not_import_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import gkd.core.class_chunks_triton"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
