"""One pool of four gloo processes for all tests of the runtime."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gloo_pool import GlooPool


@pytest.fixture(scope="session")
def pool() -> Iterator[GlooPool]:
    with GlooPool(4) as pool:
        yield pool
