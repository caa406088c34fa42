"""The Triton kernels behind `gkd.core.class_chunks_triton`, which says what they compute; needs triton.

A *tile* is a run of columns of one row, and programs are numbered tile by tile along a row, so that those that run at
the same time read memory in order. Columns past the end are loaded as excluded entries. Those need no mask: whatever is
taken from u before exp, or compared with a score, is at least `FLOOR`, so that they become 0 and are never Primary.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import math

import triton
import triton.language as tl

from gkd.core import class_chunks

EXCLUDED = tl.constexpr(class_chunks.EXCLUDED)
# Between every score and EXCLUDED, also after a division of both by a temperature.
FLOOR = tl.constexpr(-1e20)
LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def load_tile(scores, row, row_stride, columns, num_columns):
    """One row's scores at `columns`."""
    return tl.load(scores + row.to(tl.int64) * row_stride + columns, mask=columns < num_columns, other=EXCLUDED)


@triton.jit
def is_primary(ranked, columns, row, cutoff_value, cutoff_column, has_all_ties: tl.constexpr):
    """Which entries are above the row's cut-off, or equal to it and in a column before `cutoff_column`."""
    value = at_least_floor(tl.load(cutoff_value + row).to(tl.float32))
    is_tie = ranked == value
    if not has_all_ties:
        is_tie = is_tie & (columns < tl.load(cutoff_column + row))
    return (ranked > value) | is_tie


@triton.jit
def by_group(is_inside, table, row, num_rows, first, is_log: tl.constexpr):
    """Each entry's value of `table` (4, N): of line `first` on Primary, of the line after it on Secondary."""
    primary = tl.load(table + first * num_rows + row).to(tl.float32)
    secondary = tl.load(table + (first + 1) * num_rows + row).to(tl.float32)
    if is_log:
        primary, secondary = at_least_floor(primary), at_least_floor(secondary)
    return tl.where(is_inside, primary, secondary)


@triton.jit
def at_least_floor(value):
    """Raise to `FLOOR` what is below; a NaN stays one, which tl.maximum would not promise."""
    return tl.where(value < FLOOR, FLOOR, value)


@triton.jit
def sum_tile(scores, row_stride, num_columns, num_tiles, inverse_temperature, best, total, block: tl.constexpr):
    """The greatest score of a tile, and the sum of exp((score - greatest) / temperature), into (N, tiles)."""
    tile = tl.program_id(0)
    columns = tile % num_tiles * block + tl.arange(0, block)
    score = load_tile(scores, tile // num_tiles, row_stride, columns, num_columns)
    greatest = tl.maximum(tl.max(score, axis=0), FLOOR)
    tl.store(best + tile, greatest)
    tl.store(total + tile, tl.sum(tl.exp2((score - greatest) * (inverse_temperature * LOG2_E)), axis=0))


@triton.jit
def sum_groups_of_tile(
    student,
    student_stride,
    teacher,
    teacher_stride,
    num_columns,
    num_tiles,
    num_rows,
    inverse_temperature,
    cutoff_value,
    cutoff_column,
    best,
    total,
    gap,
    count,
    ranked_is_student: tl.constexpr,
    has_all_ties: tl.constexpr,
    block: tl.constexpr,
):
    """The same for both groups of both networks into (4, N, tiles), the gaps into (2, N, tiles), counts (N, tiles)."""
    tile = tl.program_id(0)
    row = tile // num_tiles
    columns = tile % num_tiles * block + tl.arange(0, block)
    student_score = load_tile(student, row, student_stride, columns, num_columns)
    teacher_score = load_tile(teacher, row, teacher_stride, columns, num_columns)
    ranked = student_score if ranked_is_student else teacher_score
    is_inside = is_primary(ranked, columns, row, cutoff_value, cutoff_column, has_all_ties)
    num_sums = num_rows * num_tiles
    sum_two_groups(student_score, is_inside, inverse_temperature, best + tile, total + tile, num_sums)
    best += 2 * num_sums
    total += 2 * num_sums
    primary, secondary = sum_two_groups(
        teacher_score, is_inside, inverse_temperature, best + tile, total + tile, num_sums
    )
    # Not u - u: the difference of the scores is exact where they are close, and 0 where both are excluded.
    ahead = teacher_score - student_score
    tl.store(gap + tile, tl.sum(primary * ahead, axis=0) * inverse_temperature)
    tl.store(gap + num_sums + tile, tl.sum(secondary * ahead, axis=0) * inverse_temperature)
    tl.store(count + tile, tl.sum(tl.where(is_inside, 1.0, 0.0), axis=0))


@triton.jit
def sum_two_groups(score, is_inside, inverse_temperature, best, total, num_sums):
    """Write one network's sums of a tile in Primary and, `num_sums` further on, in Secondary.

    Gives the exponentials of each, which are 0 in the other.
    """
    primary_best = tl.max(tl.where(is_inside, score, FLOOR), axis=0)
    secondary_best = tl.maximum(tl.max(tl.where(is_inside, FLOOR, score), axis=0), FLOOR)
    # One exponential an entry serves both groups, for it is in one of them only.
    below = score - tl.where(is_inside, primary_best, secondary_best)
    weight = tl.exp2(below * (inverse_temperature * LOG2_E))
    tl.store(best, primary_best)
    tl.store(best + num_sums, secondary_best)
    primary_weight = tl.where(is_inside, weight, 0.0)
    secondary_weight = weight - primary_weight
    tl.store(total, tl.sum(primary_weight, axis=0))
    tl.store(total + num_sums, tl.sum(secondary_weight, axis=0))
    return primary_weight, secondary_weight


@triton.jit
def merge_tiles(
    tile_best,
    tile_total,
    tile_gap,
    tile_count,
    num_tiles,
    inverse_temperature,
    best,
    total,
    gap,
    count,
    is_grouped: tl.constexpr,
    block: tl.constexpr,
):
    """Add the tiles' sums of one row and group to the sums so far, in float64; of groups, the gap and the count too."""
    row, group, num_rows = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    line = group * num_rows + row
    tiles = tl.arange(0, block)
    is_tile = tiles < num_tiles
    found = tl.load(tile_best + line * num_tiles + tiles, mask=is_tile, other=EXCLUDED)
    old = tl.load(best + line).to(tl.float64)
    # The greatest of no entry is no candidate, and its total is 0.
    found = tl.where(found <= FLOOR, old, found.to(tl.float64) * inverse_temperature)
    # Rounded before it is used, so that the totals belong to what is stored.
    new = tl.maximum(old, tl.max(found, axis=0)).to(tl.float32)
    tl.store(best + line, new)
    kept, shares = tl.exp(old - new), tl.exp(found - new)
    added = tl.load(tile_total + line * num_tiles + tiles, mask=is_tile, other=0.0).to(tl.float64) * shares
    tl.store(total + line, tl.load(total + line) * kept + tl.sum(added, axis=0))
    if is_grouped:
        if group >= 2:  # the gaps are weighted by the teacher's exponentials
            line -= 2 * num_rows
            added = tl.load(tile_gap + line * num_tiles + tiles, mask=is_tile, other=0.0).to(tl.float64) * shares
            tl.store(gap + line, tl.load(gap + line) * kept + tl.sum(added, axis=0))
        if group == 0:
            counts = tl.load(tile_count + row * num_tiles + tiles, mask=is_tile, other=0.0).to(tl.int64)
            tl.store(count + row, tl.load(count + row) + tl.sum(counts, axis=0))


@triton.jit
def gradient_of_tile(
    student,
    student_stride,
    teacher,
    teacher_stride,
    out,
    out_stride,
    num_columns,
    num_tiles,
    num_rows,
    inverse_temperature,
    class_weight,
    class_lse,
    coefficients,
    group_lse,
    cutoff_value,
    cutoff_column,
    is_distilled: tl.constexpr,
    ranked_is_student: tl.constexpr,
    has_all_ties: tl.constexpr,
    block: tl.constexpr,
):
    """The derivative by a tile of the student's scores; every entry is read before it is written."""
    tile = tl.program_id(0)
    row = tile // num_tiles
    columns = tile % num_tiles * block + tl.arange(0, block)
    score = load_tile(student, row, student_stride, columns, num_columns)
    weight = tl.load(class_weight + row).to(tl.float32)
    gradient = weight * tl.exp(score - tl.load(class_lse + row).to(tl.float32))
    if is_distilled:
        other = load_tile(teacher, row, teacher_stride, columns, num_columns)
        ranked = score if ranked_is_student else other
        is_inside = is_primary(ranked, columns, row, cutoff_value, cutoff_column, has_all_ties)
        share = tl.exp(score * inverse_temperature - by_group(is_inside, group_lse, row, num_rows, 0, True))
        gradient += by_group(is_inside, coefficients, row, num_rows, 0, False) * share
        share = tl.exp(other * inverse_temperature - by_group(is_inside, group_lse, row, num_rows, 2, True))
        gradient -= by_group(is_inside, coefficients, row, num_rows, 2, False) * share
    tl.store(out + row.to(tl.int64) * out_stride + columns, gradient, mask=columns < num_columns)


@triton.jit
def mass_of_columns(
    scores,
    row_stride,
    num_rows,
    num_columns,
    inverse_temperature,
    log_normaliser,
    masses,
    num_steps: tl.constexpr,
    block_rows: tl.constexpr,
    block: tl.constexpr,
):
    """Σ exp(u - log_normaliser) over `num_steps` times `block_rows` rows, into float64 (row programs, columns)."""
    columns = tl.program_id(0) * block + tl.arange(0, block)
    mass = tl.zeros((block,), tl.float64)
    for step in range(num_steps):
        rows = (tl.program_id(1) * num_steps + step) * block_rows + tl.arange(0, block_rows)
        is_row = rows < num_rows
        normaliser = tl.load(log_normaliser + rows, mask=is_row, other=0.0).to(tl.float32)
        places = scores + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
        score = tl.load(places, mask=is_row[:, None] & (columns < num_columns)[None, :], other=EXCLUDED)
        mass += tl.sum(tl.exp(score * inverse_temperature - normaliser[:, None]), axis=0).to(tl.float64)
    tl.store(masses + tl.program_id(1).to(tl.int64) * num_columns + columns, mass, mask=columns < num_columns)
