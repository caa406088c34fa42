"""Parts of HTML pages that need nothing from outside and run nothing but their own script."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

# These would end the block early or, in old browsers, a line of script.
_UNSAFE_IN_JSON = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}


def content_policy(style: str, script: str) -> str:
    """Nothing may be fetched, and only the page's own script and style, known by their digests, may act."""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def safe_json(data: Any) -> str:
    """`data` as JSON for a script element of a page.

    Raises:
        ValueError: a number that is not finite.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE_IN_JSON)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
