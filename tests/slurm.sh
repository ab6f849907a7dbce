#!/bin/sh
# Runs a command in a SLURM cluster of this one machine, made for it and taken down after it. Needs root.
#   sh tests/slurm.sh python train.py -m hydra/launcher=submitit_slurm seed=0,1
# Debian's packages: apt-get install --no-install-recommends munge slurmctld slurmd slurm-client
set -eu
[ "$(id -u)" = 0 ] || { echo "a SLURM cluster needs root" >&2; exit 77; }
for program in munged slurmctld slurmd sbatch; do
    PATH="$PATH:/usr/sbin" command -v "$program" > /dev/null || { echo "$program is not installed" >&2; exit 77; }
done
PATH="$PATH:/usr/sbin"
folder=$(mktemp -d) host=$(hostname -s) port=$((20000 + $$ % 5000 * 2))
processes=""
stop() {
    scancel --user=root 2> /dev/null || true
    for process in $processes; do kill "$process" 2> /dev/null || true; done
    wait
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 143' INT TERM

mkdir -p "$folder/state" "$folder/spool"
chmod 755 "$folder"
(umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SchedulerParameters=sched_interval=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
PartitionName=cpu Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$folder/slurm.conf"
# Without accounting there is nothing for sacct to ask, and submitit warns of that at every look: here the queue answers.
mkdir "$folder/bin"
cat > "$folder/bin/sacct" <<'SACCT'
#!/bin/sh
jobs=$(echo "$@" | grep -o -e '-j [0-9]*' | cut -c 4- | paste -s -d ,)
echo "JobID|State|NodeList"
squeue --noheader --array --states=all --format='%i|%T|%N' --jobs="$jobs"
SACCT
chmod 755 "$folder/bin/sacct"
PATH="$folder/bin:$PATH"

munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munged.seed" > "$folder/munged.log" 2>&1 &
processes="$!"
until [ -S "$folder/munge.socket" ]; do kill -0 $processes || { cat "$folder/munged.log" >&2; exit 1; }; sleep 0.1; done
slurmctld -D > "$folder/slurmctld.log" 2>&1 &
processes="$! $processes"
slurmd -D -N "$host" > "$folder/slurmd.log" 2>&1 &
processes="$! $processes"
tries=0
until sinfo --noheader --format=%T 2> /dev/null | grep -q idle; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { tail -n 20 "$folder"/slurm*.log >&2; exit 1; }
    sleep 0.2
done
"$@"
