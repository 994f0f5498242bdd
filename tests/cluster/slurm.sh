#!/usr/bin/env bash
# Runs a command beside a SLURM cluster of this one machine, which ends with the command:
#   tests/cluster/slurm.sh uv run snakemake --workflow-profile profiles/slurm
# The node claims 16 cores, 64 GB and two GPUs, so that jobs queue as on a real one. The GPUs are names only: what
# runs on them computes on the CPU. Needs Debian's packages slurmctld, slurmd, slurm-client and munge, which root
# gets here if they are missing. Nothing outside a temporary folder is written; all daemons listen on 127.0.0.1
# only. Their logs are shown if SLURM does not start.
set -euo pipefail

PATH=$PATH:/usr/sbin
if ! type -P munged slurmctld slurmd sbatch >/dev/null; then
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    slurmctld slurmd slurm-client munge >/dev/null
fi

folder=$(mktemp -d)
chmod 755 "$folder" # munged wants its socket to be reachable by all
node=$(hostname -s)
user=$(id -un)
export SLURM_CONF=$folder/slurm.conf

stop() {
  scancel --user "$user" 2>/dev/null || true
  for _ in {1..100}; do
    [[ -n $(squeue --noheader 2>/dev/null) ]] || break
    sleep 0.1
  done
  for daemon in slurmd slurmctld munged; do
    [[ -e $folder/$daemon.pid ]] || continue
    kill "$(<"$folder/$daemon.pid")" || true
    for _ in {1..100}; do
      [[ -e $folder/$daemon.pid ]] || break # each removes its file at the end
      sleep 0.1
    done
  done
  rm -rf "$folder"
}
trap stop EXIT

free_ports() {
  python3 - <<'PYTHON'
import socket

ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(port.getsockname()[1] for port in ports))
PYTHON
}
read -r control_port node_port < <(free_ports)

# Snakemake's jobs call srun without the environment's SLURM_*
mkdir "$folder"/{bin,state,spool}
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(type -P srun)" >"$folder/bin/srun"
chmod 755 "$folder/bin/srun"
export PATH=$folder/bin:$PATH

for number in 0 1; do
  ln -s /dev/null "$folder/gpu$number"
done
printf 'Name=gpu File=%s/gpu[0-1]\n' "$folder" >"$folder/gres.conf"
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$control_port
SlurmdPort=$node_port
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
KillWait=5
# without systemd and control groups of its own
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
# more cores and memory than the machine has
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:2
PartitionName=cpu Nodes=ALL Default=YES
PartitionName=gpu Nodes=ALL
CONF

head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 400 "$folder/munge.key"
munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld
slurmd -N "$node"
for _ in {1..100}; do
  [[ $(sinfo --noheader --format=%T --partition=gpu 2>/dev/null) == idle ]] && break
  sleep 0.1
done
if [[ $(sinfo --noheader --format=%T --partition=gpu) != idle ]]; then
  echo "slurm.sh: SLURM did not start:" >&2
  tail -n 20 "$folder"/*.log >&2
  exit 1
fi

"$@"
