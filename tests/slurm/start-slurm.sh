#!/bin/bash
# A real SLURM cluster of several nodes on one machine, for the tests: start-slurm.sh, and stop-slurm.sh ends it.
#
# Debian or Ubuntu, as root; neither systemd nor cgroups are needed. Each node is a slurmd of its own (its own port,
# spool folder and, where `unshare --uts` is allowed, host name). GPUs are fake character devices: --gpus-per-node can
# be scheduled and sets CUDA_VISIBLE_DEVICES, but no CUDA works. A second call while it runs only shows the nodes.
#
# Partitions: `main` (default; its jobs are requeued when preempted), `high` (preempts `main`) and `short` (one node,
# 30 minutes at most) on the same nodes; `apart` on two more, for what must not be disturbed. Accounts are enforced, as on most sites: a job needs one that root belongs to.
#
#   FLSL_SLURM_NODES  nodes of main and high        (3)
#   FLSL_SLURM_CPUS   CPUs each node claims         (16; may exceed the real ones)
#   FLSL_SLURM_MEM    MB each node claims           (64000; may exceed the real ones)
#   FLSL_SLURM_GPUS   fake GPUs a node, 0: none     (2)
#   FLSL_SLURM_DBD    1: slurmdbd and MariaDB, so that sacct answers (submitit needs it); 0: no accounting (1)
#   FLSL_SLURM_DIR    state, spool, database        (/var/spool/flsl-slurm; wiped at each start)
set -euo pipefail
NODES=${FLSL_SLURM_NODES:-3}; ALL=$((NODES + 2)); GPUS=${FLSL_SLURM_GPUS:-2}; DBD=${FLSL_SLURM_DBD:-1}
BASE=${FLSL_SLURM_DIR:-/var/spool/flsl-slurm}; RUN=/run/flsl-slurm; LOG=/var/log/flsl-slurm
CPUS=${FLSL_SLURM_CPUS:-16}; MEM=${FLSL_SLURM_MEM:-64000}
HOST=$(hostname -s)
t0=$(date +%s%N); say() { printf '[start-slurm %5d ms] %s\n' $(( ($(date +%s%N)-t0)/1000000 )) "$*"; }
die() { say "FAILED: $*"; tail -n 15 "$LOG"/*.log 2>/dev/null || true; exit 1; }
MARK="# made by start-slurm.sh of FLSL's tests"
refuse() { echo "start-slurm.sh: $*" >&2; exit 2; }
[ "$(id -u)" = 0 ] || refuse "must run as root, to install SLURM and start its daemons (FLSL_SLURM=1 uses a cluster that is there)"
command -v apt-get >/dev/null || refuse "installs SLURM by apt-get, on Debian or Ubuntu (FLSL_SLURM=1 uses a cluster that is there)"
if [ -e /etc/slurm/slurm.conf ] && ! grep -qF "$MARK" /etc/slurm/slurm.conf; then
  refuse "this machine belongs to a cluster (/etc/slurm/slurm.conf), which is left alone; FLSL_SLURM=1 uses it"
fi
# wait_for SECONDS COMMAND... : poll until COMMAND succeeds
wait_for() { local end=$(( $(date +%s) + $1 )); shift
  until "$@" >/dev/null 2>&1; do [ "$(date +%s)" -lt "$end" ] || return 1; sleep 0.05; done; }

# --- 0. packages (skipped when present). policy-rc.d keeps dpkg from starting daemons.
need=(); for p in slurm-wlm munge; do dpkg -s $p >/dev/null 2>&1 || need+=($p); done
if [ "$DBD" = 1 ]; then for p in slurmdbd mariadb-server; do dpkg -s $p >/dev/null 2>&1 || need+=($p); done; fi
if [ ${#need[@]} -gt 0 ]; then
  say "apt-get install ${need[*]}"
  madepol=0; [ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; madepol=1; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${need[@]}" >/dev/null
  [ $madepol = 1 ] && rm -f /usr/sbin/policy-rc.d
fi

# --- 1. already up?
if [ -f $RUN/slurmctld.pid ] && kill -0 "$(cat $RUN/slurmctld.pid)" 2>/dev/null && timeout 5 scontrol ping 2>/dev/null | grep -q UP; then
  say "already running"; sinfo; exit 0
fi
# leftovers of an unclean end: stop them by pid first
[ -d $RUN ] && "$(dirname "$(readlink -f "$0")")/stop-slurm.sh" >/dev/null 2>&1 || true

# --- 2. directories and names. Everything is wiped: job ids, database and logs start anew.
rm -rf "$BASE" "$LOG" "$RUN"; mkdir -p "$BASE/ctld" "$BASE/gpu" "$LOG" "$RUN"; chmod 755 "$BASE" "$RUN"
# node names must resolve (MASTER_ADDR is a node name; gloo resolves gethostname()), to loopback.
# /etc/hosts may be a bind mount (docker): rewrite in place, never rename over it.
hosts=$(sed '/# flsl-slurm$/d' /etc/hosts)
{ echo "$hosts"; getent hosts "$HOST" >/dev/null || echo "127.0.0.1 $HOST # flsl-slurm"
  for i in $(seq "$ALL"); do echo "127.0.0.1 node$i # flsl-slurm"; done; } > $RUN/hosts.new
cat $RUN/hosts.new > /etc/hosts
# fake GPUs: must be character devices (a plain file or no File= leaves the node INVAL or
# CUDA_VISIBLE_DEVICES empty); the trailing digit becomes the CUDA_VISIBLE_DEVICES index.
for i in $(seq 0 $(( GPUS > 0 ? GPUS - 1 : 0 ))); do mknod -m 666 "$BASE/gpu/fakegpu$i" c 1 3; done

# --- 3. munge (authentication). Daemon refuses to run as root; /run/munge must be 0755 munge.
if ! munge -n >/dev/null 2>&1; then
  [ -s /etc/munge/munge.key ] || { dd if=/dev/urandom bs=1 count=1024 of=/etc/munge/munge.key 2>/dev/null; }
  install -d -o munge -g munge -m 0755 /run/munge
  chown -R munge:munge /etc/munge /var/lib/munge /var/log/munge; chmod 700 /etc/munge /var/log/munge; chmod 600 /etc/munge/munge.key
  (cd / && setpriv --reuid munge --regid munge --clear-groups /usr/sbin/munged)
  wait_for 10 munge -n || die "munged"
  touch $RUN/munged.ours
fi
say "munge up"

# --- 4. slurm configuration
mkdir -p /etc/slurm
cat > /etc/slurm/slurm.conf <<CONF
$MARK
ClusterName=flsl
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also the time a requeued job must wait before it may start again (default 120 s)
AuthInfo=cred_expire=5
StateSaveLocation=$BASE/ctld
SlurmdSpoolDir=$BASE/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd.%n.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/slurmd.%n.log
# no cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# memory limits without cgroups: the step is killed when sampling finds it above --mem
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=256
# nodes may claim more CPUs and memory than the machine has
SlurmdParameters=config_overrides
ReturnToService=1
MpiDefault=none
GresTypes=gpu
# quick reactions, for tests
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
KillWait=5
# scontrol and squeue -t all show ended jobs for as long as the tests take
MinJobAge=3600
# jobs of partition "high" requeue those of "main"
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# at preemption send the signal of sbatch --signal (submitit: USR2), then wait the partition's GraceTime
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
$( if [ "$DBD" = 1 ]; then echo "AccountingStorageType=accounting_storage/slurmdbd"; echo "AccountingStorageHost=localhost"; echo "AccountingStoragePort=6819"; echo "AccountingStorageEnforce=associations,qos"; else echo "AccountingStorageType=accounting_storage/none"; fi )
$( [ "$DBD" = 1 ] && [ "$GPUS" -gt 0 ] && echo "AccountingStorageTRES=gres/gpu" )
NodeName=node[1-$ALL] NodeAddr=127.0.0.1 Port=[17001-$((17000+ALL))] CPUs=$CPUS RealMemory=$MEM $( [ "$GPUS" -gt 0 ] && echo Gres=gpu:$GPUS ) Feature=virtual State=UNKNOWN
PartitionName=main Nodes=node[1-$NODES] Default=YES MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=1 GraceTime=15
PartitionName=short Nodes=node1 MaxTime=30 DefaultTime=10 State=UP PriorityTier=1
PartitionName=high Nodes=node[1-$NODES] MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=apart Nodes=node[$((NODES+1))-$ALL] MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=1
CONF
{ echo "AutoDetect=off"; if [ "$GPUS" = 1 ]; then echo "Name=gpu File=$BASE/gpu/fakegpu0"; elif [ "$GPUS" -gt 1 ]; then echo "Name=gpu File=$BASE/gpu/fakegpu[0-$((GPUS-1))]"; fi; } > /etc/slurm/gres.conf

# --- 5. accounting: a private mariadb (unix socket only) + slurmdbd
if [ "$DBD" = 1 ]; then
  mkdir -p "$BASE/mysql" $RUN/mysql; chown mysql:mysql "$BASE/mysql" $RUN/mysql
  sock=$RUN/mysql/mysqld.sock
  mariadb-install-db --no-defaults --user=mysql --datadir="$BASE/mysql" --auth-root-authentication-method=socket --skip-test-db \
     --innodb-log-file-size=16M >"$LOG/mariadb-install.log" 2>&1 || die "mariadb-install-db"
  say "database created"
  install -o mysql /dev/null $RUN/mysql/mysqld.pid
  setsid mariadbd --no-defaults --user=mysql --datadir="$BASE/mysql" --socket=$sock --pid-file=$RUN/mysql/mysqld.pid --skip-networking \
     --innodb-buffer-pool-size=64M --innodb-log-file-size=16M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 \
     --log-error="$LOG/mariadbd.log" </dev/null >/dev/null 2>&1 &
  echo $! > $RUN/mysql/mysqld.pid   # from the first moment, so that an interrupted start can be undone
  wait_for 30 mariadb-admin --no-defaults --socket=$sock ping || die "mariadbd"
  say "mariadbd up"
  # root authenticates over the unix socket, so there is no password to keep
  cat > /etc/slurm/slurmdbd.conf <<CONF
AuthType=auth/munge
DbdHost=localhost
DbdPort=6819
SlurmUser=root
PidFile=$RUN/slurmdbd.pid
LogFile=$LOG/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
CONF
  chown root:root /etc/slurm/slurmdbd.conf; chmod 600 /etc/slurm/slurmdbd.conf   # slurmdbd refuses other modes
  MYSQL_UNIX_PORT=$sock slurmdbd || die "slurmdbd"
  wait_for 30 sacctmgr -n show cluster || die "slurmdbd does not answer: $(timeout 5 sacctmgr -n show cluster 2>&1)"
  [ -n "$(sacctmgr -n show cluster flsl)" ] || sacctmgr -i add cluster flsl >/dev/null 2>&1 || true   # before slurmctld registers
  say "slurmdbd up"
else
  rm -f /etc/slurm/slurmdbd.conf
fi

# --- 6. controller and nodes. Each slurmd forks into the background by itself.
slurmctld || die "slurmctld"
for i in $(seq "$ALL"); do
  mkdir -p "$BASE/node$i"
  if unshare --uts true 2>/dev/null; then unshare --uts sh -c "hostname node$i && exec slurmd -N node$i" || die "slurmd node$i"
  else slurmd -N node$i || die "slurmd node$i"; fi     # all nodes then share the machine's hostname
done
all_idle() { [ "$(sinfo -h -N -t idle -o %N | sort -u | wc -l)" = "$ALL" ]; }
wait_for 60 all_idle || { sinfo -N -o "%N %T %E"; die "nodes not idle"; }
say "all $ALL nodes idle"
timeout 60 srun -N "$NODES" -t 1 true || die "srun over all nodes"
say "srun over the nodes of main works"
# slurmctld sends its first records to slurmdbd a few seconds after start; until then sacct is empty
if [ "$DBD" = 1 ]; then
  seen() { [ -n "$(timeout 5 sacct -X -n -o jobid 2>/dev/null)" ]; }
  wait_for 30 seen || die "sacct shows no record of the test job"
  say "sacct shows the test job"
fi
sinfo -o "%P %D %T %N cpus=%c mem=%m gres=%G"
