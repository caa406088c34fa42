"""What keeps a page to itself: its policy, and data that cannot end their element."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest

from gkd.core.offline_page import content_policy, safe_json


def test_the_policy_knows_the_pages_own_style_and_script_only() -> None:
    digests = ["sha256-" + base64.b64encode(hashlib.sha256(text).digest()).decode() for text in (b"b {}", b"f()")]
    rules = dict(rule.split(" ", 1) for rule in content_policy("b {}", "f()").split("; "))
    assert rules["default-src"] == "'none'"
    assert (rules["style-src"], rules["script-src"]) == (f"'{digests[0]}'", f"'{digests[1]}'")


def test_data_cannot_end_their_element() -> None:
    data = {"</script><!--": ["\u2028", "&amp;", "ä"]}
    text = safe_json(data)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == data


def test_only_finite_numbers() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        safe_json([float("nan")])
