"""The formulation of ``planning_ilp`` handed to HiGHS as sparse arrays, for models too large to spell out.

PuLP spends about 10 µs on each term of a model; numpy builds the same rows in a hundredth of that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solver.highs import new_highs, run_in_time
from solver.normal_form import NormalForm
from solver.planning_ilp import OBJECTIVE_SIZE, objective_scale
from solver.problem import FloatArray, IntArray
from solver.solution import Solution, Status

__all__ = ["smallest_peak", "solve_by_sparse_ilp"]


METHOD = "ilp (sparse, highs)"


@dataclass(slots=True)
class _Model:
    """Columns, rows and entries of a model in the making."""

    costs: list[FloatArray] = field(default_factory=list)
    lowers: list[FloatArray] = field(default_factory=list)
    uppers: list[FloatArray] = field(default_factory=list)
    is_integer: list[NDArray[np.bool_]] = field(default_factory=list)
    row_lowers: list[FloatArray] = field(default_factory=list)
    row_uppers: list[FloatArray] = field(default_factory=list)
    entries: list[tuple[IntArray, IntArray, FloatArray]] = field(default_factory=list)
    columns: int = 0
    rows: int = 0

    def add_columns(
        self, costs: FloatArray, *, lower: float = 0.0, upper: float, is_integer: bool = False
    ) -> IntArray:
        """Numbers of new columns between ``lower`` and ``upper``."""
        self.costs.append(costs)
        self.lowers.append(np.full(costs.size, lower))
        self.uppers.append(np.full(costs.size, upper))
        self.is_integer.append(np.full(costs.size, is_integer))
        self.columns += costs.size
        return np.arange(self.columns - costs.size, self.columns)

    def add_rows(self, count: int, *, lower: float, upper: float | FloatArray) -> IntArray:
        """Numbers of new rows."""
        self.row_lowers.append(np.full(count, lower))
        self.row_uppers.append(np.broadcast_to(np.asarray(upper, dtype=np.float64), (count,)))
        self.rows += count
        return np.arange(self.rows - count, self.rows)

    def add_entries(self, rows: IntArray, columns: IntArray, values: float | FloatArray) -> None:
        """Entries (row, column, value); entries at the same place add up."""
        self.entries.append((rows, columns, np.broadcast_to(np.asarray(values, np.float64), rows.shape)))


@dataclass(frozen=True, slots=True)
class _Table:
    """Columns of one table of y or m: one per pair of classes that is not forbidden."""

    classes: tuple[IntArray, IntArray]
    columns: IntArray


def solve_by_sparse_ilp(
    form: NormalForm, *, time_limit_s: float, gap: float, start: tuple[int, ...] | None = None
) -> Solution:
    """The best picks for a normal form; ``start`` are picks to begin from."""
    start_s = time.perf_counter()
    scale = objective_scale(form)
    model, x, versions = _model(form, scale)
    limit = usage_fits if _is_short(form) else usage_adds_up
    limit(model, form, x, versions)
    highs = new_highs(time_limit_s=1.0, gap=gap)
    highs.passModel(_highs_lp(model))
    if start is not None:
        chosen = np.array([columns[pick] for columns, pick in zip(x, start, strict=True)], dtype=np.int32)
        highs.setSolution(chosen.size, chosen, np.ones(chosen.size))
    if not run_in_time(highs, time_limit_s=time_limit_s - (time.perf_counter() - start_s)):
        return Solution(Status.timed_out, None, math.inf, -math.inf, time.perf_counter() - start_s, METHOD)
    return _read(highs, x, scale, start_s)


def smallest_peak(form: NormalForm, *, time_limit_s: float, gap: float) -> Solution:
    """Picks of least peak usage among those that are not forbidden; cost and bound are in units of usage."""
    start_s = time.perf_counter()
    unit = max(float(form.room.max(initial=0.0)), 1.0)
    model, x, versions = _model(_without_costs(form), scale=1.0)
    usage_fits(model, form, x, versions)
    peak = model.add_columns(np.ones(1) * OBJECTIVE_SIZE, upper=math.inf)
    rows = np.arange(model.rows - form.room.size, model.rows)
    model.row_uppers[-1] = np.zeros(rows.size)
    model.add_entries(rows, np.repeat(peak, rows.size), -1.0)
    highs = new_highs(time_limit_s=time_limit_s, gap=gap)
    highs.passModel(_highs_lp(model))
    if not run_in_time(highs, time_limit_s=time_limit_s - (time.perf_counter() - start_s)):
        return Solution(Status.timed_out, None, math.inf, -math.inf, time.perf_counter() - start_s, METHOD)
    return _read(highs, x, OBJECTIVE_SIZE / unit, start_s)


def _without_costs(form: NormalForm) -> NormalForm:
    """Only what is forbidden and what is held."""
    pairs = (pair for pair in form.pairs if not np.isfinite(pair.costs).all())
    return replace(
        form,
        constant=0.0,
        costs=tuple(np.zeros_like(costs) for costs in form.costs),
        pairs=tuple(replace(pair, costs=np.where(np.isfinite(pair.costs), 0.0, np.inf)) for pair in pairs),
        shared=tuple(replace(s, costs=np.where(np.isfinite(s.costs), 0.0, np.inf)) for s in form.shared),
    )


def _model(form: NormalForm, scale: float) -> tuple[_Model, list[IntArray], list[_Table]]:
    """The model without a limit on usage, the columns of x for each node, and the versions made."""
    model = _Model()
    model.add_columns(np.array([form.constant * scale]), lower=1.0, upper=1.0)  # a relative gap must see it
    x = [model.add_columns(costs * scale, upper=1.0, is_integer=True) for costs in form.costs]
    one_strategy_per_node(model, x)
    for pair in form.pairs:
        y = _add_table(model, pair.costs, pair.costs * scale)
        for end in (0, 1):
            follows_its_node(model, y, end, pair.classes[end], x[pair.nodes[end]])
    versions = [_add_shared(model, form, number, x, scale) for number in range(len(form.shared))]
    return model, x, versions


def one_strategy_per_node(model: _Model, x: list[IntArray]) -> None:
    rows = model.add_rows(len(x), lower=1.0, upper=1.0)
    for row, columns in zip(rows, x, strict=True):
        model.add_entries(np.full(columns.size, row), columns, 1.0)


def follows_its_node(model: _Model, y: _Table, end: int, classes: IntArray, x: IntArray) -> None:
    """For each class at one end: the pairs that have it sum to the strategies that have it."""
    rows = model.add_rows(int(max(classes.max(), y.classes[end].max(initial=0))) + 1, lower=0.0, upper=0.0)
    model.add_entries(rows[y.classes[end]], y.columns, 1.0)
    model.add_entries(rows[classes], x, -1.0)


def versions_serve_their_uses(model: _Model, m: _Table, use: _Table, shape: tuple[int, ...]) -> None:
    """m[p,w] ≥ y[p,w], where the version costs or holds anything."""
    column = np.full(shape, -1)
    column[use.classes] = use.columns
    columns = column[m.classes]
    rows = model.add_rows(columns.size, lower=0.0, upper=math.inf)
    model.add_entries(rows, m.columns, 1.0)
    model.add_entries(rows, columns, -1.0)


def usage_fits(model: _Model, form: NormalForm, x: list[IntArray], versions: list[_Table]) -> None:
    """Live usage at each time point, in units of the largest room."""
    unit = form.room.max(initial=0.0) or 1.0
    rows = model.add_rows(form.room.size, lower=-math.inf, upper=form.room / unit)
    for times, columns, usages in _holds(form, x, versions):
        live = rows[slice(*times)]
        model.add_entries(
            np.repeat(live, columns.size), np.tile(columns, live.size), np.tile(usages / unit, live.size)
        )


def usage_adds_up(model: _Model, form: NormalForm, x: list[IntArray], versions: list[_Table]) -> None:
    """The same with a column for the usage at each time point: that of the point before, and what changes.

    Rows are short however long things are held; HiGHS takes minutes to presolve thousands of long ones.
    """
    unit = form.room.max(initial=0.0) or 1.0
    rows = model.add_rows(form.room.size, lower=0.0, upper=0.0)
    held = np.concatenate([model.add_columns(np.zeros(1), upper=float(room / unit)) for room in form.room])
    model.add_entries(rows, held, -1.0)
    model.add_entries(rows[1:], held[:-1], 1.0)
    for (start, end), columns, usages in _holds(form, x, versions):
        model.add_entries(np.full(columns.size, rows[start]), columns, usages / unit)
        if end < rows.size:
            model.add_entries(np.full(columns.size, rows[end]), columns, -usages / unit)


def _is_short(form: NormalForm) -> bool:
    """True when stating the usage at each time point by itself takes no more entries than adding it up."""
    ranges = [*((int(s), int(e)) for load in form.loads for s, e in zip(load.starts, load.ends, strict=True))]
    ranges += [shared.times for shared in form.shared]
    return sum(end - start for start, end in ranges) <= 2 * (form.room.size + len(ranges))


def _holds(
    form: NormalForm, x: list[IntArray], versions: list[_Table]
) -> Iterator[tuple[tuple[int, int], IntArray, FloatArray]]:
    """(times, columns, usage of each column) of everything that holds usage."""
    for load, own in zip(form.loads, x, strict=True):
        for start, end, usages in zip(load.starts, load.ends, load.usages, strict=True):
            yield (int(start), int(end)), own[usages > 0], usages[usages > 0]
    for shared, m in zip(form.shared, versions, strict=True):
        usages = shared.usages[m.classes[1]]
        yield shared.times, m.columns[usages > 0], usages[usages > 0]


def _add_table(model: _Model, allowed: FloatArray, prices: FloatArray | None) -> _Table:
    rows, columns = np.nonzero(np.isfinite(allowed))
    costs = np.zeros(rows.size) if prices is None else prices[rows, columns]
    return _Table((rows, columns), model.add_columns(costs, upper=math.inf))


def _add_shared(model: _Model, form: NormalForm, number: int, x: list[IntArray], scale: float) -> _Table:
    """Columns and rows of one shared tensor; returns its versions m."""
    shared = form.shared[number]
    matters = np.isfinite(shared.costs) & ((shared.costs > 0) | (shared.usages > 0))
    m = _add_table(model, np.where(matters, 0.0, math.inf), shared.costs * scale)
    for consumer, wanted in zip(shared.consumers, shared.wanted, strict=True):
        use = _add_table(model, shared.costs, None)
        follows_its_node(model, use, 0, shared.produced, x[shared.producer])
        follows_its_node(model, use, 1, wanted, x[consumer])
        versions_serve_their_uses(model, m, use, shared.costs.shape)
    return m


def _highs_lp(model: _Model) -> Any:
    """The model as HiGHS takes it, column by column."""
    import highspy

    rows, columns, values = (np.concatenate(parts) for parts in zip(*model.entries, strict=True))
    place, inverse = np.unique(columns * model.rows + rows, return_inverse=True)
    columns, rows, values = place // model.rows, place % model.rows, np.bincount(inverse, weights=values)
    lp: Any = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = model.columns, model.rows
    lp.col_cost_ = np.concatenate(model.costs)
    lp.col_lower_ = np.concatenate(model.lowers)
    lp.col_upper_ = np.concatenate(model.uppers)
    lp.row_lower_ = np.concatenate(model.row_lowers)
    lp.row_upper_ = np.concatenate(model.row_uppers)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.searchsorted(columns, np.arange(model.columns + 1)).astype(np.int32)
    lp.a_matrix_.index_ = rows.astype(np.int32)
    lp.a_matrix_.value_ = values
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    lp.integrality_ = [kinds[is_integer] for is_integer in np.concatenate(model.is_integer).tolist()]
    return lp


def _read(highs: Any, x: list[IntArray], scale: float, start_s: float) -> Solution:
    """Picks, bound and status of a finished run."""
    import highspy

    status, info = highs.getModelStatus(), highs.getInfo()
    wall_s, method = time.perf_counter() - start_s, METHOD
    if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
        return Solution(Status.infeasible, None, math.inf, math.inf, wall_s, method)
    bound = float(info.mip_dual_bound) / scale
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Solution(Status.timed_out, None, math.inf, bound, wall_s, method)
    values = np.array(highs.getSolution().col_value)
    picks = tuple(int(np.argmax(values[columns])) for columns in x)
    cost = float(info.objective_function_value) / scale
    is_proven = status == highspy.HighsModelStatus.kOptimal
    return Solution(
        Status.optimal if is_proven else Status.feasible, picks, cost, min(cost, bound), wall_s, method
    )
