"""Which of a machine's GPUs a job computes on: one that no other job of drgrade holds.

With ``snakemake --resources gpu=4`` four jobs run side by side, and each must find a card of its own. A card
is held by a lock on a file, which the system drops when the process ends, however it ends.
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
"""One folder for all checkouts and users of a machine."""
PAUSE = 2.0
"""Seconds between two looks for a free card."""
TOGETHER = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS", "LOCAL_RANK")
"""Environment variables of processes that train one network together: their starter has given them cards."""

_held: list[int] = []
"""Open lock files: they must stay open for as long as the process runs."""


def take_gpu() -> None:
    """Compute on one GPU from here on, held until this process ends; waits while all are held by others.

    Sets ``CUDA_VISIBLE_DEVICES``, so CUDA must not have been used before. Does nothing where there is no
    choice: no GPU or one, one given by a scheduler, several that share a training (``DRGRADE_DEVICES``,
    ``torchrun``, ``srun``), or a card taken before.
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

    # asks the driver without starting CUDA, which would fix the choice
    return [str(number) for number in range(torch.cuda.device_count())]


def gpu_present() -> bool:
    """Whether this process may use a GPU, as far as can be told without torch."""
    if VISIBLE in os.environ:
        return bool(cards())
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _first_free(names: list[str]) -> str | None:
    """Lock the first card that nobody holds; None where all are held."""
    LOCKS.mkdir(exist_ok=True)
    if LOCKS.stat().st_uid == os.getuid():
        LOCKS.chmod(0o1777)  # other users' jobs hold cards here as well
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
    """A lock file, made where it is not there; another user's can be read, which is enough to lock it."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
