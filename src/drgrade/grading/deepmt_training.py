"""The training of the grader ``deepmt``: its three phases, one after another.

The weights after a finished phase are kept in a file, so that a training that was killed does not repeat it.
"""

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from drgrade.grading.base import Job
from drgrade.grading.deepmt_network import DeepMTNetwork
from drgrade.grading.deepmt_phases import Grading, Joint, Phase, Restoration
from drgrade.rank import rank
from drgrade.training import CHECKPOINTS, fingerprint, fit, save_tensors

if TYPE_CHECKING:
    from drgrade.grading.deepmt import Params

PHASES: tuple[type[Phase], ...] = (Restoration, Grading, Joint)
"""In order."""


class Prefixed:
    """Reports the metrics of a phase under names of their own.

    Args:
        run: MLflow run of the training.
        prefix: put before each name.
    """

    def __init__(self, run: Any, prefix: str) -> None:
        self.run, self.prefix = run, prefix

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one epoch of the phase (``step``)."""
        self.run.metrics({self.prefix + name: value for name, value in values.items()}, step)


def train(network: DeepMTNetwork, params: "Params", job: Job) -> None:
    """Train ``network`` in three phases, resuming after the last finished epoch.

    Weights after each finished phase are kept until the last one ends. Metrics of the last phase have
    the names that other graders use; those of the others begin with the name of the phase.

    Args:
        network: trained in place.
        params: params of the experiment.
        job: photographs, seed, key.
    """
    folder = CHECKPOINTS / fingerprint(job.name, job.key, "finished phases")
    for kind in PHASES:
        finished = folder / f"{kind.name}.safetensors"
        if finished.exists():
            network.load_state_dict(load_file(finished))
            continue
        phase = kind(network, params, job)
        if not phase.trained():
            continue
        train_phase(phase, job)
        if rank() == 0 and kind is not Joint:
            save_tensors(network.state_dict(), finished)
    network.requires_grad_(True).eval()
    if rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)


def train_phase(phase: Phase, job: Job) -> None:
    """Train what a phase changes, and nothing else."""
    phase.network.requires_grad_(False)
    for part in phase.trained():
        part.requires_grad_(True)
    fit(
        phase,
        name=f"{job.name} {phase.name}",
        epochs=phase.settings.epochs,
        seed=phase.seed,
        key=(job.key, phase.name),
        run=job.run if isinstance(phase, Joint) else Prefixed(job.run, f"{phase.name}_"),
        accumulate=phase.settings.accumulate,
        clip=phase.params.clip,
    )
    phase.finish()
