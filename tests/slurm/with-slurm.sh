#!/bin/bash
# Run a command on a SLURM cluster: with-slurm.sh COMMAND…
#
# FLSL_SLURM=1 in the environment: the cluster that this machine belongs to. Otherwise one is installed (Debian or
# Ubuntu, as root), started on this machine, and stopped afterwards, unless it was running before.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
if [ "${FLSL_SLURM:-}" != 1 ]; then
  if [ -e /run/flsl-slurm/slurmctld.pid ]; then started=0; else started=1; fi
  "$here/start-slurm.sh"
  # shellcheck disable=SC2064
  [ $started = 0 ] || trap "'$here/stop-slurm.sh'" EXIT
fi
command -v sbatch >/dev/null || { echo "with-slurm.sh: no sbatch here; FLSL_SLURM=1 needs a cluster" >&2; exit 2; }
export FLSL_SLURM=1
"$@"
