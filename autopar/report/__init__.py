"""Plans made visible: as text, and as figures for notebooks and slides (these need matplotlib)."""

from autopar.report.candidates_figure import draw_candidates
from autopar.report.communication_figure import draw_communication
from autopar.report.inter_and_intra import inter_and_intra_table
from autopar.report.inter_and_intra_figure import draw_inter_and_intra
from autopar.report.layouts_figure import draw_layouts
from autopar.report.memory_figure import draw_memory
from autopar.report.schedule_figure import draw_schedule
from autopar.report.segments_figure import draw_segments
from autopar.report.strategies_figure import draw_strategies
from autopar.report.text import summary

__all__ = [
    "draw_candidates",
    "draw_communication",
    "draw_inter_and_intra",
    "draw_layouts",
    "draw_memory",
    "draw_schedule",
    "draw_segments",
    "draw_strategies",
    "inter_and_intra_table",
    "summary",
]
