"""`lean`: a test that asks for it runs on both ways to AWS."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[True, False], ids=["lean", "sdk"])
def lean(request: pytest.FixtureRequest) -> bool:
    """Whether the calls that are made most go the short way."""
    return bool(request.param)
