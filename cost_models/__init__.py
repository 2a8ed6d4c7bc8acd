"""Seconds and bytes of operators, collectives and schedules on described devices. Needs numpy at most."""
