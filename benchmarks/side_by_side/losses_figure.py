"""Losses of a contest's entries over steps, and how far each is from training by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw_losses"]


def draw_losses(found: dict[str, Any], path: Path) -> None:
    """Writes a PNG: a row for each contest with losses; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    contests = [c for c in found["contests"] if any("losses" in entry for entry in c["entries"])]
    figure, axes = pyplot.subplots(
        len(contests), 2, figsize=(11, 4 * len(contests)), squeeze=False, layout="constrained"
    )
    for (curves, differences), contest in zip(axes, contests, strict=True):
        _draw(contest, curves, differences)
    where = found["circumstances"]
    figure.suptitle(
        f"Loss on real text: {where['devices']} × {where['hardware']}, {where['precision']}, {where['date']}"
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw(contest: dict[str, Any], curves: Any, differences: Any) -> None:
    losses = {
        entry["name"]: entry["losses"]
        for entry in contest["entries"]
        if "losses" in entry and not entry.get("same_as")
    }
    base = next((name for name in losses if name.startswith("by hand")), next(iter(losses)))
    for name, values in losses.items():
        curves.plot(values, label=name, linewidth=1)
        if name != base:
            apart = [first - second for first, second in zip(values, losses[base], strict=True)]
            differences.plot(apart, label=f"{name} − {base}", linewidth=1)
    curves.set(title=contest["name"], xlabel="step", ylabel="loss")
    differences.set(title="difference", xlabel="step")
    differences.axhline(0.0, color="grey", linewidth=0.5)
    for axis in (curves, differences):
        axis.legend(fontsize=7)
