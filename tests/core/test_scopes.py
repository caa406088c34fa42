"""Scopes: nothing while nobody measures, and the measurement's own contexts while one does."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from gkd.core.scopes import measured, scope


def recorder(seen: list[str]):
    @contextmanager
    def by(name: str):
        seen.append(f"+{name}")
        yield
        seen.append(f"-{name}")

    return by


def test_a_scope_is_one_empty_context_while_nobody_measures():
    assert scope("student") is scope("head")
    with scope("student"), scope("head"):
        pass


def test_scopes_are_those_of_the_measurement():
    seen: list[str] = []
    with measured(recorder(seen)), scope("head"), scope("student"):
        pass
    with scope("clip"):
        pass
    assert seen == ["+head", "+student", "-student", "-head"]


def test_a_measurement_ends_with_an_error_and_the_outer_one_goes_on():
    outer: list[str] = []
    inner: list[str] = []
    with measured(recorder(outer)):
        with pytest.raises(KeyError), measured(recorder(inner)):
            raise KeyError
        with scope("data"):
            pass
    assert (outer, inner) == (["+data", "-data"], [])
