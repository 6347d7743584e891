#!/usr/bin/env bash
# Builds the package on a CUDA machine and checks it there: operator tests, compute-sanitizer, benchmarks of operators,
# of an RL iteration, and of a policy's control latency.
#
#   benchmarks/gpu_check.sh
#
# Needs no network: torch, cmake, ninja, pybind11, setuptools, pytest, hypothesis, pytest-benchmark and scipy must be
# installed. Wheels found in $WHEELS are made importable first (diffusers, for the tests that compare with it; accelerate
# and av too, or what needs models is skipped; torchao for the tail in float8).
#
#   OUT      folder for logs, summary and results   (default: benchmarks/results)
#   PYTHON   interpreter that has torch             (default: python3)
#   WHEELS   folder of wheels                       (default: .whl)
#
# Every step has its own time limit and log. A step that fails does not stop the others, except that nothing runs
# without a build. The exit status is 0 only if no step failed; the summary is gpu_check-summary.txt.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
mkdir -p "${OUT:=$root/benchmarks/results}" && OUT=$(cd "$OUT" && pwd) || exit 1
WHEELS=${WHEELS:-$root/.whl}
python=$(command -v "${PYTHON:-python3}") || { echo "gpu_check: no ${PYTHON:-python3} on the PATH" >&2; exit 1; }
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

summary=$OUT/gpu_check-summary.txt
num_failed=0
export VAMPO_CUDA=1 PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
run_folder=$root # where later steps run; elsewhere once the package is installed outside of the checkout

report() { # report NAME STATUS SECONDS
  printf '%-10s %-34s %4s s\n' "$1" "$2" "$3" | tee -a "$summary"
}

# step NAME LIMIT COMMAND...: runs a command under a time limit, its output to a log; returns the command's status.
# A failure whose log matches $skip_if means that the machine cannot take this step at all.
step() {
  local name=$1 limit=$2 status=0 begin=$SECONDS
  shift 2
  local log=$OUT/gpu_check-$name.log
  echo "== $name (at most $limit s, log: $log)"
  (cd "$run_folder" && exec timeout --kill-after=5 "$limit" "$@") >"$log" 2>&1 || status=$?
  if ((status == 0)); then
    report "$name" passed $((SECONDS - begin))
  elif [[ -n ${skip_if:-} ]] && grep -q "$skip_if" "$log"; then
    report "$name" "skipped: $skip_if" $((SECONDS - begin))
  else
    num_failed=$((num_failed + 1))
    tail -n 25 "$log" | sed 's/^/   /'
    ((status == 124)) && status="over $limit s" || status="status $status"
    report "$name" "FAILED: $status" $((SECONDS - begin))
    return 1
  fi
}

# Installs into the running Python where that can be written to, else into a folder that PYTHONPATH then names.
build() {
  local wheels=("$WHEELS"/*.whl)
  if [[ -e ${wheels[0]} ]]; then
    "$python" -m pip install --no-deps --no-compile --target "$scratch/site" "${wheels[@]}" || return
  fi
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  if [[ $install == editable ]]; then
    "$python" -m pip install --verbose --no-build-isolation --no-deps -e "$root" || return
  else
    "$python" -m pip install --verbose --no-build-isolation --no-deps --target "$scratch/site" "$root" || return
  fi
  cd "$run_folder" || return
  "$python" - <<'PY'
import torch
import vampo_core

info = vampo_core.build_info()
print(vampo_core.__file__, info)
assert torch.cuda.is_available(), "torch finds no CUDA device"
assert info["compiled"] and info["cuda"], "the package was built without CUDA operators"
print(torch.cuda.get_device_name(), torch.__version__)
PY
}

# sanitize TOOL LIMIT: skipped where there is no compute-sanitizer, or where it cannot work on this device.
sanitize() {
  if [[ -z $sanitizer ]]; then
    report "$1" "skipped: no compute-sanitizer" 0
    return
  fi
  skip_if='Device not supported' step "$1" "$2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$1" \
    --error-exitcode 99 --report-api-errors no "$python" "$root/benchmarks/sanitize_ops.py"
}

echo "vampo_core on $(date -u +%FT%TZ)" >"$summary"
install=$("$python" -c '
import os, sysconfig
print("editable" if os.access(sysconfig.get_path("purelib"), os.W_OK) else "target")') || exit 1
mkdir -p "$scratch/site"
export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH}
if [[ $install == target ]]; then
  run_folder=$scratch # in the checkout, `python -m` would import its sources, which have no compiled operators
fi
sanitizer=$(command -v compute-sanitizer || true)
for folder in "${CUDA_HOME:-/usr/local/cuda}/bin" "${CUDA_HOME:-/usr/local/cuda}/compute-sanitizer"; do
  [[ -z $sanitizer && -x $folder/compute-sanitizer ]] && sanitizer=$folder/compute-sanitizer
done

export -f build
export python WHEELS scratch install root run_folder
pytest=("$python" -m pytest -p no:cacheprovider --rootdir "$root" -c "$root/pyproject.toml" -q)
if step build 100 bash -c build; then
  step tests 300 "${pytest[@]}" -rs "$root/python_tests/ops"
  sanitize memcheck 60
  sanitize racecheck 60
  step benchmark 115 "${pytest[@]}" "$root/benchmarks" --benchmark-disable-gc --device cuda --budget 1 --results "$OUT"
  skip_if='No module named .\(accelerate\|diffusers\|av\)'
  step iteration 30 "$python" "$root/benchmarks/rl_iteration.py" --results "$OUT"
  svd=("$python" "$root/benchmarks/rl_iteration.py" --preset svd --rounds 2 --clips 1 --generations 4 --steps 4)
  step svd 60 "${svd[@]}" --results "$OUT" # the reference keeps G graphs of 1.5 billion weights
  step tail 60 "$python" "$root/benchmarks/rl_iteration.py" --tail-steps 2 --solver dpm++2m --results "$OUT"
  step compiled 240 "$python" "$root/benchmarks/rl_iteration.py" --tail-steps 2 --solver dpm++2m --compile --results "$OUT"
  step expandable 60 env PYTORCH_ALLOC_CONF=expandable_segments:True "${svd[@]}" --results "$OUT"
  step bfloat16 60 "${svd[@]}" --tail-dtype bfloat16 --results "$OUT"
  skip_if+="\|sampler.tail_dtype is 'float8'" step float8 60 "${svd[@]}" --tail-dtype float8 --results "$OUT"
  wan=("$python" "$root/benchmarks/memory.py" --size ti2v-5b --results)
  step memory 120 "${wan[@]}" "$OUT"
  step memory-least 120 "${wan[@]}" "$OUT/least" -- sampler.tail_chunk_size=1 model.gradient_checkpointing=true
  step latency 60 "$python" "$root/benchmarks/policy_latency.py"
  step features 60 "$python" "$root/benchmarks/policy_latency.py" --svd
else
  for name in tests memcheck racecheck benchmark iteration svd tail compiled expandable bfloat16 float8 memory memory-least latency features; do report "$name" "not run: no build" 0; done
fi

echo "$num_failed failed, $SECONDS s in all" | tee -a "$summary"
[[ $num_failed == 0 ]]
