"""What an unquoted YAML scalar means, by the rules of YAML 1.2 as far as a configuration needs them.

- `true` and `false` (also `True`, `TRUE`) are the only booleans: `on`, `off`, `yes` and `no` are text.
- A number is decimal: `1e-4` is a float; `012`, `0x1F`, `1_000` and `1:30` are text, so a number is never misread.
- A date is text.
"""

from __future__ import annotations

import re
from typing import Any

MAX_NUMBER_LENGTH = 40
INT_LIMIT = 2**63

INT_PATTERN = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
FLOAT_PATTERN = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def plain_value(text: str) -> Any:
    """The value of an unquoted scalar, by the rules that head this module.

    Raises:
        ValueError: a number that is too long, or an integer beyond 64 bits.
    """
    if text in WORDS:
        return WORDS[text]
    is_int = INT_PATTERN.fullmatch(text) is not None
    if not is_int and not FLOAT_PATTERN.fullmatch(text):
        return text
    if len(text) > MAX_NUMBER_LENGTH:
        raise ValueError(f"a number of {len(text)} characters; at most {MAX_NUMBER_LENGTH} are read")
    if not is_int:
        return float(text.replace(".", "", 1) if text.lower().endswith(("inf", "nan")) else text)
    if not -INT_LIMIT <= int(text) < INT_LIMIT:
        raise ValueError(f"the integer {text} does not fit in 64 bits")
    return int(text)
