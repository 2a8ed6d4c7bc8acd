"""Plans made visible: as text, and as figures for notebooks and slides (these need matplotlib)."""

from autopar.report.candidates_figure import draw_candidates
from autopar.report.communication_figure import draw_communication
from autopar.report.layouts_figure import draw_layouts
from autopar.report.memory_figure import draw_memory
from autopar.report.segments_figure import draw_segments
from autopar.report.strategies_figure import draw_strategies
from autopar.report.text import summary

__all__ = [
    "draw_candidates",
    "draw_communication",
    "draw_layouts",
    "draw_memory",
    "draw_segments",
    "draw_strategies",
    "summary",
]
