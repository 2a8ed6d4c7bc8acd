"""``80GB`` is 80·10⁹ bytes, ``80GiB`` 80·2³⁰."""

from __future__ import annotations

import pytest

from autopar.cli.sizes import parse_bytes
from autopar.errors import ClusterError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("80GB", 80 * 10**9),
        ("80 gb", 80 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("512MiB", 512 * 2**20),
        ("4000", 4000),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "80GX", "1e3", "8 0GB", "inf", "0"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ClusterError, match="--memory"):
        parse_bytes(text)
