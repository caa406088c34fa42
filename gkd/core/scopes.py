"""Names for the parts of a training step, which cost next to nothing while nobody measures them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Scope = Callable[[str], AbstractContextManager[object]]

_NOTHING = nullcontext()
_scope: Scope | None = None


def scope(name: str) -> AbstractContextManager[object]:
    """A context for the part `name` of a step: that of the measurement which is under way, else an empty one."""
    return _NOTHING if _scope is None else _scope(name)


@contextmanager
def measured(by: Scope) -> Iterator[None]:
    """Inside of the block, `scope(name)` gives `by(name)`. Of nested measurements the inner one counts."""
    global _scope
    outer, _scope = _scope, by
    try:
        yield
    finally:
        _scope = outer
