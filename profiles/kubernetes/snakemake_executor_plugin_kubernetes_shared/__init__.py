"""Snakemake's Kubernetes executor, for pods that share the project's folder.

The plugin assumes that nothing is shared, and copies each declared input and output through object storage.
drgrade's stages read and write whole folders below ``results/`` and ``data/``, so its pods mount the volume
that the project is on and work there, as the nodes of a cluster with a network disk do.
"""

import shlex
from dataclasses import replace

import snakemake_executor_plugin_kubernetes as kubernetes
from snakemake_executor_plugin_kubernetes import ExecutorSettings as ExecutorSettings
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

common_settings = replace(
    kubernetes.common_settings,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    auto_deploy_default_storage_provider=False,
)


class Executor(kubernetes.Executor):
    """Runs jobs as pods in the folder that Snakemake was started in."""

    def get_job_exec_prefix(self, job: JobExecutorInterface) -> str:
        """Shell command before that of a job."""
        return f"cd {shlex.quote(self.workflow.workdir_init)}"
