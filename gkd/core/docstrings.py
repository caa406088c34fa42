"""What Google-style docstrings say, for schemas that are generated from classes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any


def summary(factory: Callable[..., Any]) -> str | None:
    """The first sentence-paragraph of the docstring, on one line."""
    return " ".join((inspect.getdoc(factory) or "").split("\n\n")[0].split()) or None


def argument_descriptions(factory: Callable[..., Any]) -> dict[str, str]:
    """Parameter name to its text in the `Args:` section of a Google-style docstring."""
    described: dict[str, str] = {}
    documents = [factory.__doc__, getattr(factory, "__init__", None).__doc__ if inspect.isclass(factory) else None]
    for document in filter(None, documents):
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(document), re.MULTILINE | re.DOTALL)
        for name, text in re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\S|\Z)", section[1] if section else "", re.M | re.S):
            described[name] = " ".join(text.split())
    return described
