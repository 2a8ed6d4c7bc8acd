"""HiGHS through highspy: silent, with the tolerances that every model here relies on."""

from __future__ import annotations

import importlib.util
import threading
from typing import Any

__all__ = ["TOLERANCE", "has_highs", "new_highs", "run_in_time"]

TOLERANCE = 1e-9
"""Largest violation of a constraint or of integrality, on coefficients scaled to about 1."""


GRACE_S, GRACE_SHARE = 2.0, 0.02
"""How much later than its time limit, in seconds and as a share of it, a run may end."""


def has_highs() -> bool:
    """True when highspy is installed."""
    return importlib.util.find_spec("highspy") is not None


def new_highs(*, time_limit_s: float, gap: float) -> Any:
    """An empty HiGHS model that prints nothing and stops at the time limit or at the relative gap."""
    import highspy

    class SilentHighs(highspy.Highs):
        """Its constructor prints a banner on stdout unless told not to before callbacks are enabled."""

        def enableCallbacks(self) -> Any:  # noqa: N802 (highspy's own name)
            self.setOptionValue("output_flag", False)
            return super().enableCallbacks()  # type: ignore[no-untyped-call]

    model: Any = SilentHighs()  # type: ignore[no-untyped-call]
    model.setOptionValue("output_flag", False)
    model.setOptionValue("time_limit", max(0.01, time_limit_s))
    model.setOptionValue("mip_rel_gap", gap)
    for option in ("mip_feasibility_tolerance", "primal_feasibility_tolerance"):
        model.setOptionValue(option, TOLERANCE)
    return model


def run_in_time(model: Any, *, time_limit_s: float) -> bool:
    """Solve a model; False when it did not end in time, and is not to be touched any more.

    HiGHS looks at the clock between steps only, and some steps of its presolve take minutes on long rows (issue
    2021 of its repository, for one). Such a run cannot be stopped: its thread is left to itself.
    """
    model.setOptionValue("time_limit", max(0.01, time_limit_s))
    thread = threading.Thread(target=model.run, daemon=True)
    thread.start()
    thread.join(time_limit_s * (1 + GRACE_SHARE) + GRACE_S)
    return not thread.is_alive()
