#!/bin/bash
# Run a command on a SLURM cluster: with-slurm.sh COMMAND…
#
# FLSL_SLURM=1 in the environment: the cluster that this machine belongs to. Otherwise one is installed (Debian or
# Ubuntu, as root), started on this machine, and stopped afterwards, also after a failure, Ctrl-C or SIGTERM; one that
# was running before is used and left running.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
stop() {
  code=$?
  trap '' INT TERM HUP
  "$here/stop-slurm.sh" || code=$((code ? code : 1))
  exit "$code"
}
if [ "${FLSL_SLURM:-}" != 1 ]; then
  # the shell waits for the command to end before it heeds a signal
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  [ -e /run/flsl-slurm/slurmctld.pid ] || trap stop EXIT
  "$here/start-slurm.sh"
fi
command -v sbatch >/dev/null || { echo "with-slurm.sh: no sbatch here; FLSL_SLURM=1 needs a cluster" >&2; exit 2; }
export FLSL_SLURM=1
"$@"
