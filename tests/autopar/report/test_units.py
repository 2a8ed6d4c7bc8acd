"""Numbers as people read them."""

from __future__ import annotations

import pytest

from autopar.report.units import plain, show_bytes, show_count, show_flops, show_seconds, show_share


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (show_seconds(0.0), "0"),
        (show_seconds(0.0123), "12.3 ms"),
        (show_seconds(2.5e-6), "2.50 µs"),
        (show_seconds(3e-8), "0.03 µs"),
        (show_seconds(61.0), "61.0 s"),
        (show_bytes(0), "0 B"),
        (show_bytes(80 * 10**9), "80.0 GB"),
        (show_bytes(4_583_552), "4.58 MB"),
        (show_count(92_200), "92.2 k"),
        (show_count(8.03e9), "8.03 B"),
        (show_count(12), "12"),
        (show_flops(3.2e15), "3.20 PFLOP"),
        (show_share(0.534), "53.4 %"),
    ],
)
def test_numbers(shown: str, text: str) -> None:
    assert shown == text


def test_text_of_a_plan_cannot_move_the_cursor() -> None:
    assert plain("a\nb\x1b[31mc\rd") == "a�b�[31mc�d"
    assert plain("größe × 2") == "größe × 2"
