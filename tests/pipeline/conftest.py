"""Fixtures of the pipeline's tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data, or skip where there is none."""
    folder = Path(os.environ.get("WIT_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real data that lies in {folder.name}; set WIT_SHARED_DATA to its folder")
    return folder
