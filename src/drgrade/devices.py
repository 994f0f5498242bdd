"""Choose a GPU of this machine that no other job of drgrade uses.

With ``snakemake --resources gpu=4`` four jobs run side by side, and each needs a GPU of its own. A GPU is
reserved by a file lock, which the operating system releases when the process ends, also after a crash.
"""

import fcntl
import logging
import os
import tempfile
import time
from pathlib import Path

from drgrade.distributed import DEVICES

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
LOCKS = Path(tempfile.gettempdir()) / "drgrade-gpus"
"""Folder of lock files, shared by all checkouts and users of a machine."""
PAUSE = 2.0
"""Seconds between two attempts to find a free GPU."""
TOGETHER = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS", "LOCAL_RANK")
"""Environment variables that indicate distributed training, whose launcher has assigned the GPUs."""

_held: list[int] = []
"""Open lock files: they must stay open for as long as the process runs."""


def take_gpu() -> None:
    """Reserve one GPU until this process ends; wait while all are reserved by other jobs.

    Sets ``CUDA_VISIBLE_DEVICES``, so CUDA must not have been initialised before. Does nothing where there is
    no choice: at most one GPU, one assigned by a scheduler, a distributed training (``DRGRADE_DEVICES``,
    ``torchrun``, ``srun``), or a GPU already reserved by this process.
    """
    together = os.environ.get(DEVICES, "1") != "1" or any(name in os.environ for name in TOGETHER)
    if _held or together:
        return
    names = cards()
    if len(names) < 2:
        return
    waits = False
    while (free := _first_free(names)) is None:
        if not waits:
            log.info("all %d GPUs are in use by other jobs of drgrade; waiting for one", len(names))
        waits = True
        time.sleep(PAUSE)
    os.environ[VISIBLE] = free
    log.info("GPU %s of %s", free, ", ".join(names))


def cards() -> list[str]:
    """The GPUs this process may use, by the names that ``CUDA_VISIBLE_DEVICES`` takes."""
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    if not gpu_present():  # spares the import of torch
        return []
    import torch

    # queries the driver without initialising CUDA, after which the variable has no effect
    return [str(number) for number in range(torch.cuda.device_count())]


def gpu_present() -> bool:
    """Whether this process may use a GPU, as far as can be told without torch."""
    if VISIBLE in os.environ:
        return bool(cards())
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _first_free(names: list[str]) -> str | None:
    """Lock the first free GPU and return its name; None if all are locked."""
    LOCKS.mkdir(exist_ok=True)
    if LOCKS.stat().st_uid == os.getuid():
        LOCKS.chmod(0o1777)  # other users' jobs create lock files here as well
    for name in names:
        file = _opened(LOCKS / name.replace("/", "_"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            continue
        _held.append(file)
        return name
    return None


def _opened(path: Path) -> int:
    """Open a lock file, creating it if missing; read access, also to another user's, suffices for a lock."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
