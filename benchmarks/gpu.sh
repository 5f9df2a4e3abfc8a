#!/usr/bin/env bash
# All that a GPU changes, in one call of at most ten minutes, on a machine with a driver, Python and this checkout:
#
#   bash benchmarks/gpu.sh                       # packages from the package index
#   WHEELS=folder bash benchmarks/gpu.sh         # packages from a folder, without a network
#   SHAPE=tiny PAIRS=1 bash benchmarks/gpu.sh    # to try it on a CPU
#
# Tables, figures and a log go to $OUT, or outputs/gpu. An environment in .venv is taken as it is. Each step has what is
# left of the time, and steps.csv says how each ended (124: cut off); what was written before stays.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(mkdir -p "${OUT:-outputs/gpu}" && cd "${OUT:-outputs/gpu}" && pwd)
shape=${SHAPE:-gpt2} pairs=${PAIRS:-5} limit=${LIMIT:-585} failed=0 python=$PWD/.venv/bin/python
exec > >(tee "$out/log.txt") 2>&1
echo "step,seconds,status" > "$out/steps.csv"
export HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1 KINETO_LOG_LEVEL=99

step() { # name, most seconds, command...
  local name=$1 most=$2 began=$SECONDS left=$((limit - SECONDS)) status
  shift 2
  if [ "$left" -le 5 ]; then status=skipped
  else timeout --kill-after=5 "$((most < left ? most : left))" "$@"; status=$?; fi
  [ "$status" = 0 ] || failed=1
  echo "$name,$((SECONDS - began)),$status" >> "$out/steps.csv"
  echo "== $name: $status after $((SECONDS - began)) s"
}

install() {
  if [ -n "${WHEELS:-}" ]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=$WHEELS; fi
  "${PYTHON:-python3}" -m venv .venv || return
  local pip="$python -m pip install -q --disable-pip-version-check --no-deps"
  $pip --require-hashes -r requirements.lock || return
  if "$python" -c "from importlib.metadata import requires; exit('cuda-toolkit' not in str(requires('torch')))"; then
    $pip --require-hashes -r requirements-cuda.lock || return
  fi
  $pip --no-build-isolation -e .
}
export -f install
export python

"$python" -c "import rlhf, trl" 2>/dev/null || step install 300 bash -c install
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no GPU is seen: CPU"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
step stand-ins 60 "$python" benchmarks/gpu.py stand-ins "$work" --shape "$shape"
step checks 120 "$python" benchmarks/gpu.py checks "$out" --shape "$shape"
for stage in scoring sft reward ppo generation; do
  step "bench-$stage" 100 "$python" benchmarks/bench.py --stage "$stage" --shape "$shape" --pairs "$pairs" --results "$out"
done
step notebooks 300 env RLHF_PROFILE=gpt2 RLHF_MODEL="$work/model" RLHF_DATASET="$work/pairs.jsonl" RLHF_MAX_STEPS=2 \
  RLHF_OUTPUTS="$work/outputs" "$python" scripts/run_notebooks.py
cp -r "$work/outputs/evaluation/gpt2" "$out/notebooks" 2>/dev/null
step bench-means 200 "$python" benchmarks/bench.py --stage means --shape "$shape" --pairs "$((pairs < 3 ? pairs : 3))" --results "$out"
step bench-growth 100 "$python" benchmarks/bench.py --stage growth --shape "$shape" --results "$out"
cat "$out/steps.csv"
exit "$failed"
