"""Rows of a run beside the predictions, as JSON and as Markdown."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .contests import INDEX

__all__ = ["markdown", "results"]

HEADER = (
    "| | step, predicted | measured | 10 to 90 % | error | peak, predicted | measured | error | tokens/s | MFU "
    "| planned in | first step |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)


def results(plans: Path, rows: Sequence[dict[str, Any]], circumstances: dict[str, Any]) -> dict[str, Any]:
    """Everything in one table: circumstances, and each contest with its entries, predicted and measured."""
    index = json.loads((plans / INDEX).read_text())
    contests = [
        contest | {"entries": _entries(contest, place, index, rows)}
        for place, contest in enumerate(index["contests"])
        if any(row["contest"] == place for row in rows)
    ]
    kept = {key: value for key, value in index.items() if key != "contests"}
    return {"circumstances": circumstances | kept, "contests": contests}


def _entries(
    contest: dict[str, Any], place: int, index: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(contest["entries"]):
        mine = [row for row in rows if (row["contest"], row["entry"]) == (place, number)]
        found[entry["name"]] = entry | _measured(mine, contest, index)
    for entry in found.values():
        if entry.get("same_as"):  # one program, measured once
            other = found[entry["same_as"]]
            entry |= {key: other[key] for key in ("measured", "losses", "error") if key in other}
    return list(found.values())


def _measured(
    rows: Sequence[dict[str, Any]], contest: dict[str, Any], index: dict[str, Any]
) -> dict[str, Any]:
    """Steps of all rounds together."""
    errors = [row["error"] for row in rows if "error" in row]
    losses = [row["losses"] for row in rows if "losses" in row]
    timed = [row for row in rows if "steps_s" in row]
    found: dict[str, Any] = {"error": errors[0]} if errors else {}
    found |= {"losses": losses[0]} if losses else {}
    if not timed:
        return found
    steps_s = [step for row in timed for step in row["steps_s"]]
    step_s = statistics.median(steps_s)
    low_s, high_s = (statistics.quantiles(steps_s, n=10)[place] for place in (0, -1))
    peak = index["peak_flops_per_s"] * index["devices"]
    return found | {
        "measured": {
            "step_s": step_s,
            "step_low_s": low_s,
            "step_high_s": high_s,
            "rounds_s": [statistics.median(row["steps_s"]) for row in timed],
            "issue_s": statistics.median(issue for row in timed for issue in row["issues_s"]),
            "steps": len(steps_s),
            "tokens_per_s": contest["tokens"] / step_s,
            "mfu": contest["flops"] / step_s / peak,
            "peak_bytes": max(row["peak_bytes"] for row in timed),
            "reserved_bytes": max(row["reserved_bytes"] for row in timed),
            "before_bytes": max(row["before_bytes"] for row in timed),
            "first_step_s": timed[0]["first_step_s"],
            "build_s": timed[0]["build_s"],
            "first_loss": timed[0]["first_loss"],
            "last_loss": timed[0]["last_loss"],
            "kernels": next((row["kernels"] for row in timed if row.get("kernels")), None),
        }
    }


def markdown(found: dict[str, Any]) -> str:
    """The report for people."""
    where = found["circumstances"]
    head = f"# Plans side by side: {where['devices']} × {where['hardware']}, torch {where['torch']}, {where['date']}"
    lines = [head, "", *(f"`{command}`  " for command in where["commands"]), "", *_summary(found), ""]
    for contest in found["contests"]:
        lines += [f"## {contest['name']}", "", *HEADER, *_rows(contest), "", *_verdict(contest), ""]
    lines += [_foot(where)]
    return "\n".join(lines) + "\n"


def _foot(where: dict[str, Any]) -> str:
    return (
        f"Python {where['python']}, CUDA {where['cuda']}, NCCL {where['nccl']}, driver {where['driver']}. "
        f"Compute in {where['precision']}, parameters, gradients and AdamW states in float32. Steps are timed between "
        f"CUDA events without synchronisation, {where['rounds']} rounds of {where['steps']} steps in turn after "
        f"{where['warm_up']} steps of warm-up, each entry built anew in every round; step time is the median over "
        "all, of the slowest rank. Peak memory is torch.cuda.max_memory_allocated of the fullest rank. The first step "
        "holds compilation. MFU is against the planned device's peak. Every entry of a contest trains the same "
        "parameters on the same random tokens."
    )


def _rows(contest: dict[str, Any]) -> list[str]:
    """Fastest first; those that did not run at the end."""
    entries = sorted(contest["entries"], key=lambda e: e.get("measured", {}).get("step_s", float("inf")))
    return [_row(entry) for entry in entries]


def _row(entry: dict[str, Any]) -> str:
    what = f"{entry['name']}: {entry['what']}" if "what" in entry else entry["name"]
    if entry.get("same_as"):
        what += f" (the program of “{entry['same_as']}”)"
    promise, found = entry.get("predicted"), entry.get("measured")
    cells = [what]
    cells += [f"{promise['step_time_s'] * 1e3:.1f}" if promise else ""]
    if found:
        ends = f"{found['step_low_s'] * 1e3:.1f} to {found['step_high_s'] * 1e3:.1f}"
        cells += [f"{found['step_s'] * 1e3:.1f}", ends]
    else:
        cells += [entry.get("error", "not measured")[:120].replace("|", "/").replace("\n", " "), ""]
    cells += [f"{step_error(entry):+.1%}" if promise and found else ""]
    cells += [f"{promise['peak_memory_bytes'] / 1e9:.2f}" if promise else ""]
    cells += [f"{found['peak_bytes'] / 1e9:.2f}" if found else ""]
    cells += [f"{memory_error(entry):+.1%}" if promise and found and found["peak_bytes"] else ""]
    cells += [f"{found['tokens_per_s']:,.0f}", f"{found['mfu']:.1%}"] if found else ["", ""]
    cells += [f"{entry['planning_s']:.1f} s" if "planning_s" in entry else ""]
    cells += [f"{found['first_step_s']:.1f} s" if found else ""]
    return f"| {' | '.join(cells)} |"


def step_error(entry: dict[str, Any]) -> float:
    """Predicted over measured, less 1."""
    return float(entry["predicted"]["step_time_s"] / entry["measured"]["step_s"] - 1.0)


def memory_error(entry: dict[str, Any]) -> float:
    """Predicted over measured, less 1."""
    return float(entry["predicted"]["peak_memory_bytes"] / entry["measured"]["peak_bytes"] - 1.0)


def _verdict(contest: dict[str, Any]) -> list[str]:
    """The chosen plan against the fastest plan and the best by hand, and the losses."""
    measured = [entry for entry in contest["entries"] if "measured" in entry]
    chosen = next((entry for entry in measured if entry["name"] == "chosen"), None)
    lines = []
    if chosen is not None:
        for title, rivals in (
            ("fastest plan", [entry for entry in measured if "predicted" in entry]),
            ("fastest by hand", [entry for entry in measured if "by_hand" in entry]),
        ):
            if rivals:
                best = min(rivals, key=_step_s)
                lines.append(
                    f"- Chosen plan against the {title} ({best['name']}): {_step_s(chosen) / _step_s(best) - 1:+.1%}."
                )
        lines.append(f"- Kendall's tau over plans: {_tau_text(measured)}.")
    return lines + _same_training(measured) + _loss_lines(contest)


def _same_training(measured: Sequence[dict[str, Any]]) -> list[str]:
    """All entries train the same parameters on the same batch: their losses say so."""
    if len(measured) < 2:
        return []
    first, last = ([entry["measured"][key] for entry in measured] for key in ("first_loss", "last_loss"))
    return [
        f"- Loss of the first step, all entries: {min(first):.4f} to {max(first):.4f}; of the last: {min(last):.4f} to "
        f"{max(last):.4f}."
    ]


def _loss_lines(contest: dict[str, Any]) -> list[str]:
    """Mean and largest difference of losses from the first entry by hand."""
    curves = {e["name"]: e["losses"] for e in contest["entries"] if "losses" in e and not e.get("same_as")}
    base = next((name for name in curves if name.startswith("by hand")), None)
    lines = []
    for name, losses in curves.items():
        if base is None or name == base:
            continue
        apart = [abs(first - second) for first, second in zip(losses, curves[base], strict=True)]
        lines.append(
            f"- Loss over {len(losses)} steps of real text, {name} against {base}: {losses[0]:.4f} → {losses[-1]:.4f} "
            f"against {curves[base][0]:.4f} → {curves[base][-1]:.4f}; apart by {statistics.mean(apart):.1e} in the "
            f"mean, {max(apart):.1e} at most."
        )
    return lines


def _step_s(entry: dict[str, Any]) -> float:
    return float(entry["measured"]["step_s"])


def _plans(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Plans that ran, each program once."""
    return [e for e in entries if "measured" in e and "predicted" in e and not e.get("same_as")]


def _tau_text(entries: Sequence[dict[str, Any]]) -> str:
    plans = _plans(entries)
    if len(plans) < 2:
        return "no two plans"
    pairs = [(entry["predicted"]["step_time_s"], _step_s(entry)) for entry in plans]
    return f"{kendall(pairs):.2f} ({len(plans)} plans)"


def kendall(pairs: Sequence[tuple[float, float]]) -> float:
    """Kendall's tau: concordant less discordant pairs, over all pairs."""
    signs = [
        1.0 if (first[0] - second[0]) * (first[1] - second[1]) > 0 else -1.0
        for first, second in itertools.combinations(pairs, 2)
    ]
    return statistics.mean(signs)


def _summary(found: dict[str, Any]) -> list[str]:
    """What all plans show together."""
    plans = [entry for contest in found["contests"] for entry in _plans(contest["entries"])]
    if not plans:
        return ["Nothing was measured."]
    errors = [abs(step_error(entry)) for entry in plans]
    lines = [
        f"- {len(plans)} plans: step time predicted with a median error of {statistics.median(errors):.1%}, "
        f"worst {max(errors):.1%}."
    ]
    memory = [memory_error(entry) for entry in plans if entry["measured"]["peak_bytes"]]
    if memory:
        ends = f"from {min(memory):+.1%} to {max(memory):+.1%}"
        lines.append(f"- Peak memory: median error {statistics.median(memory):+.1%}, {ends}.")
    return lines
