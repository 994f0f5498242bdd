"""Distributed training: several processes, one per GPU, train one network.

They are started by ``torchrun`` or by SLURM's ``srun`` (any number of machines that share a disk), or by
Lightning on this machine if ``DRGRADE_DEVICES`` is set; each process runs the same command. Without any of
these a training is one process on one device.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drgrade.errors import UserError
from drgrade.rank import rank as rank

if TYPE_CHECKING:
    import torch

DEVICES = "DRGRADE_DEVICES"
"""Environment variable: GPUs of this machine to train on, a number or ``all``. The default is 1, as Snakemake
may run several trainings at once."""


@dataclass(frozen=True)
class Launch:
    """``devices`` processes on each of ``nodes`` machines that train together, started by ``starter``."""

    devices: int = 1
    nodes: int = 1
    starter: str = ""

    @property
    def processes(self) -> int:
        """Total number of processes."""
        return self.devices * self.nodes

    def environment(self) -> Any:
        """Lightning's cluster environment for this starter; None for one process."""
        from lightning_fabric.plugins.environments import (
            LightningEnvironment,
            SLURMEnvironment,
            TorchElasticEnvironment,
        )

        if self.processes == 1:
            return None
        if self.starter == "srun":
            return SLURMEnvironment(auto_requeue=False)  # Snakemake restarts the job, which then resumes
        return TorchElasticEnvironment() if self.starter == "torchrun" else LightningEnvironment()


def launch() -> Launch:
    """Detect how this process was started, from environment variables.

    Raises:
        UserError: machines with unequal numbers of processes, or more GPUs asked for than there are.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _even("torchrun", int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    # set by srun only: the batch script's own process is not part of a distributed training
    tasks, machines = (int(os.environ.get(f"SLURM_STEP_NUM_{what}", 1)) for what in ("TASKS", "NODES"))
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(f"srun: {tasks} processes; say how many on each machine with --ntasks-per-node")
    if tasks > 1:
        return _even("srun", tasks, -(-tasks // machines))
    asked = os.environ.get(DEVICES, "1")
    if asked == "1":
        return Launch()
    import torch

    here = torch.cuda.device_count() if torch.cuda.is_available() else os.cpu_count() or 1
    if asked == "all":
        return Launch(torch.cuda.device_count() or 1, starter="drgrade")
    if not asked.isdigit() or not 1 <= int(asked) <= here:
        raise UserError(f"{DEVICES}={asked}: give a number from 1 to {here}, or all")
    return Launch(int(asked), starter="drgrade")


def _even(starter: str, processes: int, here: int) -> Launch:
    if processes % here:
        raise UserError(
            f"{starter}: {processes} processes, {here} of them here; start as many on every machine"
        )
    return Launch(here, processes // here, starter)


def world() -> int:
    """Number of processes in the initialised process group, 1 without one."""
    import torch.distributed as processes

    return processes.get_world_size() if processes.is_available() and processes.is_initialized() else 1


def sum_over_processes(value: "torch.Tensor") -> "torch.Tensor":
    """The sum of a tensor over all processes, all of which must call this; unchanged for one process."""
    import torch.distributed as processes

    if world() == 1:
        return value
    total = value.clone()
    processes.all_reduce(total)
    return total


def mean_over_processes(value: "torch.Tensor") -> "torch.Tensor":
    """The mean of a tensor over all processes, all of which must call this; unchanged for one process."""
    return value if world() == 1 else sum_over_processes(value) / world()


def broadcast_buffers(network: "torch.nn.Module") -> None:
    """Copy the first process's buffers to all: unsynchronised BatchNorm statistics differ between them."""
    import torch.distributed as processes

    if world() > 1:
        for buffer in network.buffers():
            processes.broadcast(buffer, 0)


def synchronised(network: "torch.nn.Module") -> None:
    """Replace every BatchNorm below ``network`` by SyncBatchNorm, which works on GPUs only.

    Uses timm's converter: torch's, which Lightning's ``sync_batchnorm`` calls, drops the activation that
    timm's BatchNorm layers include.
    """
    from timm.layers import convert_sync_batchnorm

    convert_sync_batchnorm(network)
