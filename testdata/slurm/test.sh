#!/usr/bin/env bash
# Plays a run as an array job of a real Slurm: its daemons run here, as one node,
# on ports and files of their own, and end with this script. Needs root and
# Debian's slurm-wlm; exits with status 77 where they are not there.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PWD/bin:$PATH:/usr/sbin
for program in slurmctld slurmd sbatch munged jq; do
  command -v $program >/dev/null || { echo "no $program here: apt-get install slurm-wlm jq"; exit 77; }
done
[ "$(id -u)" = 0 ] || { echo "slurmd needs root"; exit 77; }

dir=$(mktemp -d)
chmod 755 "$dir"
pids=()
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait
  rm -rf "$dir"
}
trap finish EXIT

mkdir "$dir/state" "$dir/spool"
head -c 1024 /dev/urandom >"$dir/munge.key"
chmod 600 "$dir/munge.key"
munged --foreground --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munge.pid" \
  --log-file="$dir/munge.log" --seed-file="$dir/munge.seed" >"$dir/munged.out" 2>&1 &
pids+=($!)
host=$(hostname -s)
cat >"$dir/slurm.conf" <<C
ClusterName=reprise
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/ctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/ctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=16 Boards=1 SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=10 State=UP
C
export SLURM_CONF=$dir/slurm.conf
slurmctld -D >"$dir/ctld.out" 2>&1 &
pids+=($!)
slurmd -D -N "$host" >"$dir/slurmd.out" 2>&1 &
pids+=($!)
for _ in $(seq 60); do
  [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && break
  sleep 0.5
done
[ "$(sinfo -h -o %T)" = idle ] || { echo "slurm did not come up" >&2; cat "$dir"/*.out "$dir"/*.log >&2; exit 1; }

files=$PWD/testdata/slurm
trace=$PWD/testdata/demo.parquet
cd "$dir"
start() { date -u -d '+20 sec' +%FT%TZ; }
play() { # NAME: an array of four, and what joins it; prints the array's id
  local id
  id=$(sbatch --parsable --array=0-3 --export="ALL,TRACE=$trace,RUN=$dir/$1,START_AT=$(start)" "$files/replay.sbatch" --speedup 10 --telemetry off)
  sbatch --parsable --dependency="afterany:$id" --export="ALL,RUN=$dir/$1" "$files/merge.sbatch" >"$dir/$1.merge"
  echo "$id"
}
ended() { # waits for the job that joins
  for _ in $(seq 240); do
    case $(scontrol show job "$(cat "$dir/$1.merge")" -o | grep -o 'JobState=[A-Z]*') in *PENDING | *RUNNING | *COMPLETING) sleep 0.5 ;; *) return ;; esac
  done
  echo "$1 does not end" >&2
  return 1
}
rows=$(trace info --json "$trace" | jq .rows)

play whole >/dev/null
ended whole
played=$(jq '.plan.requests' whole/run/run.json)
jq -e ".merge.of == 4 and (.merge.missing | not) and .state == \"complete\" and .stats.requests_sent == $rows" whole/run/run.json >/dev/null ||
  { echo "not the whole run: $played of $rows" >&2; tail -n 20 replay-*.log merge-*.log >&2; exit 1; }
echo "an array of 4 played $played of $rows requests, begun within $(jq '.merge.offset_ns_max' whole/run/run.json) ns of each other"

id=$(play cut)
for _ in $(seq 60); do
  [ -f cut/shard-2/run.json ] && break
  sleep 0.2
done
scancel "${id}_2"
ended cut
jq -e '.state == "partial" and (.reason | test("shard 2/4")) and .stats.requests_unsent > 0' cut/run/run.json >/dev/null ||
  { echo "the cancelled shard is not named" >&2; jq '{state, reason, stats}' cut/run/run.json >&2; exit 1; }
echo "a cancelled task is named, with the $(jq .stats.requests_unsent cut/run/run.json) requests that it did not send"

rm -r whole/shard-1
status=0
report merge whole/shard-*/ --partial -o whole/rest >/dev/null 2>&1 || status=$?
jq -e '.merge.missing == [1] and .merge.requests_missing > 0' whole/rest/run.json >/dev/null && [ $status = 3 ] ||
  { echo "the lost shard is not named (status $status)" >&2; exit 1; }
echo "a lost shard is named, with the $(jq .merge.requests_missing whole/rest/run.json) requests that it would have sent"
