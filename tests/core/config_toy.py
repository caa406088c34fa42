"""A small configuration with every kind of key, and the classes that its Parts name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import Field

from gkd.core.config import ConfigModel, FilePath, Part, PartOf
from gkd.core.errors import ConfigError


class Group(Protocol):
    """What `Grouped` nests."""

    size: int


class Fixed:
    """A fixed size.

    Args:
        size: number of entries,
            at least 1.

    Raises:
        ConfigError: a size below 1.
    """

    def __init__(self, *, size: int = 3) -> None:
        if size < 1:
            raise ConfigError(f"size must be at least 1, got {size}")
        self.size = size


class Arc:
    """An angle."""

    def __init__(self, *, margin: float = 0.5, mode: Literal["exact", "fast"] = "exact") -> None:
        if margin < 0:
            raise ConfigError(f"margin must not be negative, got {margin}")
        self.margin = margin
        self.mode = mode


class Steps:
    """Milestones without a default.

    Args:
        at: where the steps are.
    """

    def __init__(self, *, at: tuple[float, ...], limit: float | None = None) -> None:
        self.at = at
        self.limit = limit


class Grouped:
    """A class with another inside."""

    def __init__(self, *, weight: float = 1.0, group: Group = Fixed(size=7)) -> None:  # noqa: B008
        self.weight = weight
        self.group = group


class Files:
    """Takes a path by position, and a count that only the run knows."""

    def __init__(self, path: str | Path, count: int = 1, *, cache: Path | None = None) -> None:
        self.path = Path(path)
        self.count = count
        self.cache = cache


class Library:
    """One of many networks."""

    def __init__(self, *, model: str, width: int = 8) -> None:
        self.model = model
        self.width = width


GROUPS = {"fixed": Fixed}
SHAPES = {"arc": Arc, "steps": Steps, "grouped": Grouped}
FILES = {"files": Files}

Shape = Annotated[Part, PartOf(SHAPES, "shape", nested={Group: GROUPS}, is_checked=True)]
FilesPart = Annotated[Part, PartOf(FILES, "files", include=["path"], open_prefixes={"lib:": (Library, "model")})]


class Optim(ConfigModel):
    """A section."""

    lr: float = Field(gt=0, description="base learning rate")
    warmup_steps: int = Field(default=0, ge=0)
    ceiling: float = Field(default=1.0, allow_inf_nan=True)
    clip: Annotated[float, Field(gt=0)] | None = 5.0


class Term(ConfigModel):
    """An entry of a list."""

    shape: Shape
    weight: float = 1.0


class Toy(ConfigModel):
    """A root."""

    optim: Optim
    title: str = "toy"
    is_fast: bool = False
    mode: Literal["auto", "never"] = "auto"
    folder: FilePath | None = None
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    limit: int | Literal["none"] = "none"
    sets: tuple[FilePath, ...] = ()
    shape: Shape = Field(default="arc", validate_default=True)
    files: FilesPart | None = None
    terms: tuple[Term, ...] = ()

    @classmethod
    def cross_checks(cls, raw):
        if raw.get("terms") and raw.get("is_fast") is True:
            yield "terms", "cannot be fast; set is_fast to false"
