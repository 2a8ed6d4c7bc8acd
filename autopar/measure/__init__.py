"""Measures devices and links, and fits profiles to what was measured. Needs torch and numpy only."""

from autopar.measure.profile import measure_profile

__all__ = ["measure_profile"]
