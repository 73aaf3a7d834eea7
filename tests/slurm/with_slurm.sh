#!/bin/bash
# usage: with_slurm.sh COMMAND …   runs COMMAND beside a Slurm cluster of this one machine, which it starts as root in a
# temporary folder and stops again. Where Slurm is missing it is installed first (Debian: slurm-wlm, munge). Exit code 77:
# it cannot be.
set -u
missing() {
  for each in munged slurmctld slurmd sbatch; do
    PATH=$PATH:/usr/sbin command -v $each >/dev/null || { echo $each; return; }
  done
}
[ "$(id -u)" = 0 ] || { echo "skipped: the daemons of Slurm need root"; exit 77; }
if [ -n "$(missing)" ] && command -v apt-get >/dev/null; then
  echo "installing slurm-wlm and munge"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes slurm-wlm munge; } >/dev/null 2>&1
fi
[ -z "$(missing)" ] || { echo "skipped: $(missing) is not installed and could not be (apt install slurm-wlm munge)"; exit 77; }
PATH=$PATH:/usr/sbin
folder=$(mktemp -d /tmp/slurm.XXXXXX)
chmod 755 "$folder"
mkdir -p "$folder/spool" "$folder/state" "$folder/munge"
chmod 700 "$folder/munge"
node=$(hostname -s)
ports=$(python3 -c 'import socket; a, b = socket.socket(), socket.socket(); [s.bind(("", 0)) for s in (a, b)]; print(a.getsockname()[1], b.getsockname()[1])')
read -r controller_port node_port <<<"$ports"
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(free -m | awk '/Mem:/ {print int($2 * 0.8)}') State=UNKNOWN
PartitionName=all Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
head -c 1024 /dev/urandom >"$folder/munge/key"
chmod 400 "$folder/munge/key"
stop() {
  scancel --quiet --state=RUNNING --state=PENDING -u root >/dev/null 2>&1
  for each in slurmd slurmctld munge/munged; do
    [ -f "$folder/$each.pid" ] && kill "$(cat "$folder/$each.pid")" 2>/dev/null
  done
  sleep 1
  rm -rf "$folder"
}
trap stop EXIT
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/munged.pid" \
  --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" || exit 1
slurmctld -f "$SLURM_CONF" || { cat "$folder/slurmctld.log"; exit 1; }
slurmd -f "$SLURM_CONF" -N "$node" || { cat "$folder/slurmd.log"; exit 1; }
for _ in $(seq 30); do
  sinfo -h -o %T 2>/dev/null | grep -q idle && break
  sleep 1
done
sinfo -h -o %T | grep -q idle || { echo "Slurm did not come up"; tail "$folder"/*.log; exit 1; }
"$@"
