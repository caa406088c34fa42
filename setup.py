"""Packaging; the settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
version = re.search(r'__version__ = "(.+?)"', (ROOT / "gkd/__init__.py").read_text(encoding="utf-8"))
assert version is not None
requirements = [
    line
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]

setup(
    name="gkd",
    version=version.group(1),
    description="Face-recognition training with Grouped Knowledge Distillation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["gkd", "gkd.*"]),
    package_data={"gkd.evaluation": ["html/*"], "gkd.runs": ["html/*"]},
    install_requires=requirements,
)
