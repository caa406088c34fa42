"""Memory that is freed and taken again: page by page from the system, or as it is."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from gkd.core.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(10 << 20) for _ in range(4)]  # of 40 MiB, which glibc maps one by one
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[-4:]))
"""


def run(what: str, **variables: str) -> list[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRE", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT, what]
    done = subprocess.run(command, env={**plain, **variables}, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_next_step_finds_its_memory_still_there() -> None:
    (given_back,) = run("give back")
    done, kept = run("keep")
    assert done == "True"
    assert int(given_back) > 20 * max(int(kept), 1)


@pytest.mark.parametrize("variable", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_a_user_has_set_stays(variable: str) -> None:
    done, _ = run("keep", **{variable: "1" if variable.startswith("MALLOC") else "glibc.malloc.arena_max=1"})
    assert done == "False"
