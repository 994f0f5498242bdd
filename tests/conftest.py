"""Fixtures that more than one stage needs."""

import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tests.pipeline import fork_server
from xdist.scheduler import LoadScopeScheduling

# tests run side by side, and what they train is tiny: more threads would wait for each other
os.environ.setdefault("DRGRADE_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of tests that call torch or NumPy themselves
# a busy machine is not a failure: no test is judged by the seconds of a single example
settings.register_profile(
    "default", max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

SERVER = pytest.StashKey[subprocess.Popen]()


class ByFile(LoadScopeScheduling):
    """Tests of a file run in one process; of the pipeline each may run in any, as they share its files."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return nodeid if "/pipeline/" in file else file


def pytest_configure(config: pytest.Config) -> None:
    """Start one fork server, which imports nothing before it is asked, for all processes of the test run."""
    if not hasattr(config, "workerinput"):
        os.environ[fork_server.ADDRESS] = f"{tempfile.mkdtemp()}/socket"
        config.stash[SERVER] = fork_server.start(os.environ[fork_server.ADDRESS])


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the server."""
    if SERVER in config.stash:
        config.stash[SERVER].communicate()
        shutil.rmtree(Path(os.environ.pop(fork_server.ADDRESS)).parent)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """In place of ``--dist loadgroup``, whose marks pytest 9 does not see."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole pipelines come first, so that no process is left with one at the end: IDRiD's in one of them,
    in another the one that all other tests of the pipeline wait for. Then the files outside of folders,
    some of which take long, too."""
    folders = {"pipeline": 0, "tests": 1}
    files = {"test_idrid.py": 0, "test_snakemake.py": 1, "test_dvc.py": 3}
    items.sort(key=lambda item: (folders.get(item.path.parent.name, 2), files.get(item.path.name, 2)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Have the garbage collector leave out the libraries: MMEngine and others run it at each training."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module")
def forked_pools() -> Iterator[None]:
    """Has the fork server start the processes that tests of a file spawn, which then import no library."""
    multiprocessing.set_executable(str(fork_server.interpreter(os.environ[fork_server.ADDRESS])))
    yield
    multiprocessing.set_executable(sys.executable)


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
