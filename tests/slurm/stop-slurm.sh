#!/bin/bash
# Stop the cluster that start-slurm.sh started, and only it (by its pid files): cancel all jobs, end slurmd, slurmctld,
# slurmdbd, mariadbd and (where start-slurm.sh started it) munged, take the nodes' names out of /etc/hosts, and remove the
# configuration: SLURM's commands, snakemake's among them, would look for the cluster for ten seconds each. Logs and state
# stay until the next start; --clean removes them. Safe to call when nothing runs.
set -uo pipefail
BASE=${FLSL_SLURM_DIR:-/var/spool/flsl-slurm}; RUN=/run/flsl-slurm; LOG=/var/log/flsl-slurm
t0=$(date +%s%N); say() { printf '[stop-slurm %5d ms] %s\n' $(( ($(date +%s%N)-t0)/1000000 )) "$*"; }
# running PIDFILE NAME: is the pid in the file alive and the right program (no pid reuse)?
running() { [ -s "$1" ] && [ "$(cat "/proc/$(cat "$1")/comm" 2>/dev/null)" = "$2" ]; }
# end PIDFILE NAME SECONDS: TERM, wait, then KILL
end() { running "$1" "$2" || { rm -f "$1"; return 0; }
  local pid; pid=$(cat "$1"); kill -TERM "$pid" 2>/dev/null
  for _ in $(seq $(( $3 * 20 ))); do [ "$(cat /proc/$pid/comm 2>/dev/null)" = "$2" ] && ! grep -q '^State:.Z' /proc/$pid/status 2>/dev/null || { rm -f "$1"; return 0; }; sleep 0.05; done
  say "$2 ($pid) did not end on TERM: KILL"; kill -KILL "$pid" 2>/dev/null; rm -f "$1"; }
if running $RUN/slurmctld.pid slurmctld; then
  jobs=$(timeout 10 squeue -h -o %A 2>/dev/null | sort -u)
  if [ -n "$jobs" ]; then say "cancelling jobs: $(echo $jobs)"; timeout 20 scancel $jobs 2>/dev/null
    for _ in $(seq 60); do [ -z "$(timeout 5 squeue -h -o %A 2>/dev/null)" ] && break; sleep 0.25; done; fi
fi
for f in $RUN/slurmd.*.pid; do [ -e "$f" ] && end "$f" slurmd 10; done
end $RUN/slurmctld.pid slurmctld 15
end $RUN/slurmdbd.pid slurmdbd 10
end $RUN/mysql/mysqld.pid mariadbd 20
[ -e $RUN/munged.ours ] && end /run/munge/munged.pid munged 5
if grep -q '# flsl-slurm$' /etc/hosts; then h=$(sed '/# flsl-slurm$/d' /etc/hosts); echo "$h" > /etc/hosts; fi
# steps outlive their slurmd: name any that is left (live ones, not zombies)
left=$(ps -eo pid=,stat=,args= | awk '$2 !~ /^Z/ && $3 ~ /^(slurmstepd|slurmd|slurmctld|slurmdbd)/ {print}')
[ -n "$left" ] && { say "still alive:"; echo "$left"; }
rm -rf $RUN
if grep -qsF "# made by start-slurm.sh of FLSL's tests" /etc/slurm/slurm.conf; then
  rm -f /etc/slurm/slurm.conf /etc/slurm/gres.conf /etc/slurm/slurmdbd.conf
fi
[ "${1:-}" = --clean ] && rm -rf "$BASE" "$LOG"
say "stopped"
[ -z "$left" ]
