"""Fixtures that more than one stage needs."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def idrid() -> Path:
    """Root of real photographs in IDRiD's official layout, or a skip."""
    root = os.environ.get("DRGRADE_IDRID_ROOT")
    if not root or not Path(root).is_dir():
        message = "no real photographs: set DRGRADE_IDRID_ROOT to a folder in IDRiD's official layout"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return Path(root)
