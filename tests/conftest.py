"""Fixtures for all tests."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data beside the repository (../shared/data); a test that needs it skips without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real data: there is no folder ../shared/data beside the repository")
    return SHARED_DATA
