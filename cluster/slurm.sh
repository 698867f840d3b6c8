#!/usr/bin/env bash
# One training run in one Slurm allocation: a Ray head on the first node, workers on the others.
#
#   sbatch cluster/slurm.sh jobs/recipes/sd35_medium_pickscore_pec.yaml [--dotted.overrides ...]
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 cluster/slurm.sh RECIPE     # other sizes
#
# Submit it from the repository, on storage that all nodes share; .venv there is what `make train`
# installs, PYTHON names another interpreter. The run is RUNS/slurm-JOBID (RUNS: runs, here).
# Half an hour before the time limit, which must be longer than a step and a checkpoint take, the
# run finishes its step, writes a checkpoint and the job goes back into the queue; started again,
# after a lost node too, it goes on with --resume by itself.
#SBATCH --job-name=percent_ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@1800
#SBATCH --output=slurm-%j.log
set -euo pipefail

recipe=${1:?usage: sbatch cluster/slurm.sh RECIPE [--dotted.overrides ...]}
shift
cd "${SLURM_SUBMIT_DIR:-.}"
runs=${RUNS:-runs}
python=$(command -v "${PYTHON:-.venv/bin/python}")
ray=$(dirname "$python")/ray
name=slurm-$SLURM_JOB_ID
seconds_to_join=${SECONDS_TO_JOIN:-300}

# Whoever reaches Ray's port must have the token; it is this job's own and ends with it.
mkdir -p "$runs"
umask 077
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/.slurm-token-$SLURM_JOB_ID
[[ $RAY_AUTH_TOKEN_PATH = //* ]] && RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH#/}
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"

steps=()
driver=
# shellcheck disable=SC2317  # by the trap
finish() {
  trap - EXIT
  [[ -z $driver ]] || kill "$driver" 2>/dev/null || true
  # srun passes the signal on to its node's `ray start`, which ends its processes.
  [[ ${#steps[@]} -eq 0 ]] || kill "${steps[@]}" 2>/dev/null || true
  wait || true
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap finish EXIT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))
# shellcheck disable=SC2016  # each node's own numbers
start='exec "$0" start --block --disable-usage-stats --num-cpus="${SLURM_CPUS_ON_NODE:-$(nproc)}" "$@"'
join() { # NODE, then the flags of `ray start`
  srun --nodes=1 --ntasks=1 --overlap --nodelist="$1" bash -c "$start" "$ray" "${@:2}" >/dev/null &
  steps+=($!)
}
join "$head" --head --node-ip-address="$address" --port="$port" --include-dashboard=false \
  --temp-dir="/tmp/percent_ray-$SLURM_JOB_ID"
for node in "${nodes[@]:1}"; do
  join "$node" --address="$address:$port"
done

export RAY_ADDRESS=$address:$port
joined='import ray, sys; ray.init(log_to_driver=False, logging_level="error")
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]))'
until "$python" -c "$joined" "${#nodes[@]}" 2>/dev/null; do
  if ((SECONDS > seconds_to_join)); then
    echo "error: ${#nodes[@]} nodes did not join $RAY_ADDRESS in $seconds_to_join s" >&2
    exit 1
  fi
  sleep 2
done

# The newest folder of this job that has a checkpoint: a run that had none began again beside it.
folder=$(find "$runs" \( -path "$runs/$name/checkpoints/step-*" -o \
  -path "$runs/$name-[0-9]*/checkpoints/step-*" \) -prune -printf '%T@ %h\n' |
  sort -n | tail -n 1 | cut -d' ' -f2-)
if [[ -n $folder ]]; then
  arguments=(--resume "${folder%/checkpoints}")
else
  arguments=(--config "$recipe" --run.name "$name" --run.folder "$runs")
fi
echo "$python jobs/train_pec.py ${arguments[*]} and $# words more" # they may hold credentials
"$python" jobs/train_pec.py "${arguments[@]}" "$@" &
driver=$!

# A signal interrupts `wait`; the driver's SIGTERM ends it behind its step, with a checkpoint.
again=false interrupted=true code=0
trap 'again=true interrupted=true; kill -TERM "$driver"' USR1
trap 'interrupted=true; kill -TERM "$driver"' TERM
while $interrupted; do
  interrupted=false code=0
  wait "$driver" || code=$?
done
driver=
if $again && ((code == 0)); then
  echo "stopped before the time limit; back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
