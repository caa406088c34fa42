"""Tables for a terminal and for Markdown: text to the left, figures to the right."""

from __future__ import annotations

from collections.abc import Sequence

MAX_CELL_LENGTH = 44
_MARKED = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]<>#|~$!&"})


def format_terminal(titles: Sequence[str], rows: Sequence[Sequence[str]], num_text_columns: int) -> str:
    """Aligned columns under a line of titles; the first `num_text_columns` are aligned to the left."""
    lines = [[_cut(cell) for cell in line] for line in (titles, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(_aligned(line, widths, num_text_columns) + "\n" for line in lines)


def _aligned(cells: Sequence[str], widths: Sequence[int], num_text_columns: int) -> str:
    aligned = [
        cell.ljust(width) if column < num_text_columns else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(aligned).rstrip()


def _cut(cell: str) -> str:
    return cell if len(cell) <= MAX_CELL_LENGTH else cell[: MAX_CELL_LENGTH - 1] + "…"


def format_markdown(titles: Sequence[str], rows: Sequence[Sequence[str]], num_text_columns: int) -> str:
    """A Markdown table whose cells show every character as it is."""
    marks = [":--" if column < num_text_columns else "--:" for column in range(len(titles))]
    lines = [[escape_markdown(cell) for cell in line] for line in (titles, *rows)]
    lines.insert(1, marks)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def escape_markdown(text: str) -> str:
    """`text` with every character that Markdown would read escaped."""
    return text.translate(_MARKED)
