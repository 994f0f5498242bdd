"""What one training costs: ``cost.json`` beside its ``training.json``.

Times and memory differ from run to run. So DVC ignores this file, and no job runs again because of it.
The metrics of its epochs, which are the same in every run, are passed on to :mod:`.history`.
"""

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drgrade.distributed import world
from drgrade.grading.base import Grader
from drgrade.grading.history import History
from drgrade.memory import peak_memory_gb
from drgrade.params import Experiment, Grade
from drgrade.rank import rank

COST = "cost.json"
MARKS = Path(".cache/drgrade/training")
"""``drgrade.training.CHECKPOINTS``, without the import of torch: marks are beside the checkpoints."""


class Meter:
    """Measures one training. Takes the place of its MLflow run in :class:`.Job`, and passes metrics on.

    A training that reports its speed writes a checkpoint after each epoch (:mod:`drgrade.training`). Each
    such epoch leaves the history so far in a mark, which is removed when the training ends. A mark that is
    already there tells that this process continues a training that was interrupted.

    Args:
        run: MLflow run of the training.
        name: name of the training in the log.
        key: see :func:`drgrade.resume.training_key`.

    Attributes:
        resumed: whether an earlier process has run some of the epochs.
        history: metrics of all epochs, also of these.
    """

    def __init__(self, run: Any, name: str, key: str) -> None:
        self.run = run
        self.mark = MARKS / f"{hashlib.sha256(f'{name} {key}'.encode()).hexdigest()[:16]}.begun"
        self.resumed = self.mark.exists()
        self.history = History(self.mark)
        self.seconds = self.peak = 0.0

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, add them to the history, and keep the highest peak of memory.

        On a GPU, each phase of ``deepmt`` measures a peak of its own.

        Args:
            values: metrics by name.
            step: the epoch, counted from 0. None for a training without epochs: its metrics are not in the
                history.
        """
        self.run.metrics(values, step or 0)
        if step is not None:
            self.history.add(step + 1, values)
        self.peak = max([self.peak, *(value for name, value in values.items() if name.endswith("memory_gb"))])
        if rank() == 0 and any(name.endswith("images_per_s") for name in values):
            self.history.keep()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context manager: the block is the training."""
        began = time.monotonic()
        yield
        self.seconds = time.monotonic() - began
        self.peak = max(self.peak, peak_memory_gb())
        if rank() == 0:
            self.mark.unlink(missing_ok=True)

    def cost(self, params: Experiment, photographs: int) -> dict[str, Any]:
        """Return the content of ``cost.json`` after the training.

        Args:
            params: params of the experiment.
            photographs: number of training photographs.

        Returns:
            ``train_minutes``; ``peak_memory_gb`` (1e9 bytes, see :func:`.peak_memory_gb`); ``images_per_s``,
            training photographs times epochs by the time of the whole training, None where no network passes
            over photographs; ``device``; ``resumed``. Minutes and speed of a resumed training are None, as
            this process ran only some of its epochs.
        """
        epochs = passes(params)
        timed = not self.resumed
        return {
            "train_minutes": round(self.seconds / 60, 4) if timed else None,
            "peak_memory_gb": round(self.peak, 3),
            "images_per_s": round(photographs * epochs / self.seconds, 3) if timed and epochs else None,
            "device": device_name(),
            "resumed": self.resumed,
        }


def passes(params: Experiment) -> int | None:
    """How often a training passes each photograph through its network; None if it trains no whole network.

    Epochs over stored features, as of ``linear`` and ``fusion``, do not count. ``deepmt`` passes over pairs
    of a graded and a drawn photograph in two of its phases: each pair counts as two.
    """
    return params.epochs if isinstance(params, Grade) else getattr(params, "passes", None)


def parameters(grader: Grader) -> int | None:
    """Number of weights of a trained grader, frozen ones included; None if it has none."""
    network = grader.tensors()
    return (sum(one.numel() for one in network.parameters()) or None) if network is not None else None


def device_name() -> str:
    """The device that this process computes on, such as ``cpu, 2 threads`` or the name of a GPU."""
    torch = sys.modules.get("torch")  # what does not use it need not wait for its import
    if torch is None:
        return "cpu"
    if torch.cuda.is_available():
        name, count = torch.cuda.get_device_name(), world()
        return f"{count} x {name}" if count > 1 else str(name)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"
