"""Numbers as people read them: 12.3 ms, 4.6 MB, 92.2 k."""

from __future__ import annotations

__all__ = ["plain", "show_bytes", "show_count", "show_flops", "show_seconds", "show_share"]


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    for size, unit in units:
        if abs(value) >= size:
            return f"{_three_digits(value / size)} {unit}".rstrip()
    size, unit = units[-1]
    return f"{_three_digits(value / size)} {unit}".rstrip()


def _three_digits(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def show_seconds(seconds: float) -> str:
    if seconds == 0:
        return "0"
    return _scaled(seconds, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")))


def show_bytes(size_bytes: float) -> str:
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    return _scaled(size_bytes, ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")))


def show_count(count: float) -> str:
    """12, 92.2 k, 8.03 B: numbers of things, or of things a second."""
    if count < 1000:
        return f"{count:.3g}"
    return _scaled(count, ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")))


def show_flops(flops: float) -> str:
    if flops < 1000:
        return f"{flops:.0f} FLOP"
    units = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    return _scaled(flops, units) + "FLOP"


def show_share(share: float) -> str:
    return f"{100 * share:.1f} %"


def plain(text: str) -> str:
    """Text of a plan on one line, without characters that a terminal or a figure would act on."""
    return "".join(character if character.isprintable() else "�" for character in text)
