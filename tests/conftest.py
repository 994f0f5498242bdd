"""Fixtures that more than one stage needs."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is not a failure: no test is judged by the seconds of a single example
settings.register_profile(
    "patient", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what runs in one process: the tests of a file, and all tests that share the finished pipeline.

    Whole pipelines come first, so that no process is left with one at the end.
    """

    def place(item: pytest.Item) -> tuple[int, str]:
        if "snakemade" in getattr(item, "fixturenames", ()):
            return 0, "pipeline"
        return (1, item.nodeid) if item.path.parent.name == "pipeline" else (2, str(item.path))

    items.sort(key=lambda item: place(item)[0])
    for item in items:
        item.add_marker(pytest.mark.xdist_group(place(item)[1]))


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
