#!/usr/bin/env bash
# Runs the tests and benchmarks that need a CUDA device, the most valuable first, within BUDGET_S seconds.
#
#   launch/gpu-checks.sh            PYTHON=python3.12 launch/gpu-checks.sh            DEVICE=cpu for a dry run
#
# Needs torch 2.11 or newer, numpy, pyarrow, pytest, rich, safetensors, pillow, tensorboard and scikit-image. The rest, clip
# shards included, is in the folder BUNDLE that `make gpu-bundle` wrote (default: this one, or runs/gpu-bundle).
#
# Compiling takes longer than measuring: everything compiles at once beside the tests, and what is measured afterwards
# finds its graphs in a cache. Each part has its own limit. As it ends, its figures are in $OUT: results.jsonl, table.md,
# and all output in log.txt. The table "parts" has the exit code and the time of each. A dry run has an hour, for a busy
# machine.
# The last part trains the bundled tokenizer further for the rest of the time, and leaves it in $OUT/weights with its
# metrics and its scores on held-out videos. START: the checkpoint to start from. TRAINING_S: time kept for it. ONLY: a
# regular expression of the names of parts.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
OUT=${OUT:-runs/gpu}
WORK=${WORK:-runs/gpu-work}
START=${START:-vidvq/weights}
ONLY=${ONLY:-.}
[ -n "${BUNDLE:-}" ] || { [ -e packages.tar.xz ] && BUNDLE=.; } || BUNDLE=runs/gpu-bundle
CORES=$(env -u OMP_NUM_THREADS nproc)
if [ "$DEVICE" = cuda ]; then
  BUDGET_S=${BUDGET_S:-540}
  HALF=bfloat16
  : "${MAIN:=base}" "${SHAPES:=32x9,8x9,1x9}" "${SIDE:=256}" "${ROUNDS:=5}" "${SIZES:=nano small base large}"
  : "${CONFIGS:=small vqgan-base-128}" "${BATCH:=64}" "${STEPS:=45}" "${CLIPS:=4000}" "${TRAINING_S:=200}"
  : "${STEP_SETTINGS:=data.workers=12 data.cache_mib=12288}"
  : "${SETTINGS:=precision=bf16 data.batch_size=64 data.workers=12 data.cache_mib=12288 evaluation.every=1000000 checkpoint_every=500}"
else
  BUDGET_S=${BUDGET_S:-3600}
  # Most CPUs have no bf16 arithmetic, and emulate it slowly. Everything is as small as it can be.
  HALF=float32
  : "${MAIN:=nano}" "${SHAPES:=1x1,2x2}" "${SIDE:=32}" "${ROUNDS:=1}" "${SIZES:=}"
  : "${CONFIGS:=nano}" "${BATCH:=1}" "${STEPS:=30}" "${CLIPS:=4}" "${TRAINING_S:=60}"
  : "${STEP_SETTINGS:=data.crop=32 data.num_frames=5 data.workers=1 precision=fp32}"
  : "${SETTINGS:=data.batch_size=1 data.num_frames=5 data.crop=32 data.workers=1 evaluation.clips=null}"
  # Inductor would start a C++ compiler for each kernel, which takes minutes. Graphs are traced and differentiated.
  export TORCH_COMPILE_OVERRIDE_BACKENDS=${TORCH_COMPILE_OVERRIDE_BACKENDS-">=0:aot_eager"}
fi
mkdir -p "$OUT" "$WORK"
WORK=$(cd "$WORK" && pwd)
: > "$OUT/log.txt"
: > "$OUT/results.jsonl"
if [ -e "$BUNDLE/packages.tar.xz" ] && [ ! -e "$WORK/packages" ]; then
  rm -rf "$WORK/packages.tmp"
  mkdir "$WORK/packages.tmp" && tar -xf "$BUNDLE/packages.tar.xz" -C "$WORK/packages.tmp" &&
    mv "$WORK/packages.tmp" "$WORK/packages" || exit
fi
export PYTHONPATH=$PWD:$WORK/packages${PYTHONPATH:+:$PYTHONPATH}
failed=0
SECONDS=0

part() {  # part NAME LIMIT_S COMMAND...: a failure, or a part that takes too long, does not stop the others.
  local name=$1 limit=$2 left=$((BUDGET_S - SECONDS)) began=$SECONDS code
  shift 2
  [[ $name =~ $ONLY ]] || return
  if [ "$left" -le 5 ]; then
    echo "== $name: no time left" | tee -a "$OUT/log.txt"
    failed=1
    return
  fi
  # A dry run shows that parts work, on however slow a machine; each leaves half of its time to those after it.
  [ "$DEVICE" = cuda ] || [ "$name" = weights ] || limit=$((left / 2))
  [ "$limit" -lt "$left" ] || limit=$left
  echo "== $name (at most $limit s): $*" | tee -a "$OUT/log.txt"
  # Not SIGTERM: a training process would end its step first, and outlive its parent.
  timeout --signal=KILL "$limit" "$@" 2>&1 | tee -a "$OUT/log.txt" /dev/stderr \
    | "$PYTHON" benchmarks/table.py --part "$name" >> "$OUT/results.jsonl"
  code=${PIPESTATUS[0]}
  echo "== $name: exit code $code after $((SECONDS - began)) s" | tee -a "$OUT/log.txt"
  echo "{\"part\": \"parts\", \"name\": \"$name\", \"exit_code\": $code, \"seconds\": $((SECONDS - began))}" \
    >> "$OUT/results.jsonl"
  [ "$code" = 0 ] || failed=1
  "$PYTHON" benchmarks/table.py "$OUT/results.jsonl" > "$OUT/table.md"
}

extra() {  # extra NAME LIMIT_S COMMAND...: a part that must leave the time for training.
  if [ $((BUDGET_S - SECONDS - $2)) -ge "$TRAINING_S" ]; then
    part "$@"
  else
    echo "== $1: left out" | tee -a "$OUT/log.txt"
  fi
}

# shellcheck disable=SC2329  # invoked by the functions below, as their first argument
compile() {  # compile NAME LIMIT_S COMMAND...: in the background; its figures do not count.
  [[ $1 =~ $ONLY ]] || return
  timeout --signal=KILL "$2" "${@:3}" >> "$OUT/compile.txt" 2>&1 &
}

job() {  # job PART LIMIT_S CLIPS SECONDS
  "$1" job "$2" "$PYTHON" benchmarks/job.py "$BUNDLE/clips/train" --clips "$3" --seconds "$4" --device "$DEVICE" \
    --decoders "$CORES"
}

steps() {  # steps PART MODE DTYPE LIMIT_S
  "$1" "steps, $2" "$4" "$PYTHON" benchmarks/steps.py "$MAIN" --device "$DEVICE" --dtype "$3" --mode "$2" \
    --shapes "$SHAPES" --side "$SIDE" --rounds "$ROUNDS"
}

training() {  # training PART NAME LIMIT_S SETTINGS...
  local config
  for config in $CONFIGS; do
    # shellcheck disable=SC2086
    "$1" "$2, $config" "$3" "$PYTHON" benchmarks/training.py "$BUNDLE/clips/train" "$config" --batch "$BATCH" \
      --steps "$STEPS" $STEP_SETTINGS "${@:4}"
  done
}

part machine 60 "$PYTHON" -c 'import json, os, platform, torch
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, "device": device, "cores": os.cpu_count()}))'
if [ "$DEVICE" = cuda ]; then
  export TORCHINDUCTOR_CACHE_DIR=$WORK/graphs
  steps compile captured "$HALF" 170
  job compile 170 64 3
  training compile "training, compiled" 170 compile=true
  VIDVQ_REQUIRE_GPU=1 part tests 120 "$PYTHON" -m pytest tests/gpu/test_cuda.py tests/gpu/test_memory.py -m gpu -v -p no:cacheprovider --noconftest
  wait
  steps part captured "$HALF" 60
fi
job part 120 "$CLIPS" 10
training part training 60
training part "training, compiled" 90 compile=true
steps part eager "$HALF" 40
[ "$DEVICE" = cpu ] || steps extra triton "$HALF" 60
# shellcheck disable=SC2086
[ -z "$SIZES" ] || extra sizes 60 "$PYTHON" benchmarks/model.py $SIZES --device "$DEVICE" --dtype "$HALF" --json
extra agreement 40 "$PYTHON" benchmarks/model.py "$MAIN" --device "$DEVICE" --side "$SIDE" \
  --agreement --json
# A third of the rest, at most 90 s, is for starting, timing a few steps and scoring.
left=$((BUDGET_S - SECONDS)) aside=$((left / 3 < 90 ? left / 3 : 90))
train_s=$((left - aside > 10 ? left - aside : 10))
[ "$DEVICE" = cuda ] || train_s=10
# shellcheck disable=SC2086
part weights "$left" "$PYTHON" benchmarks/weights.py --clips "$BUNDLE/clips" --start "$START" --work "$WORK/weights" \
  --out "$OUT/weights" --budget-s "$train_s" $SETTINGS
# The scores are in weights/README.md.
metrics=$WORK/weights/train/metrics.jsonl
[ ! -e "$metrics" ] || { mkdir -p "$OUT/weights" && cp "$metrics" "$OUT/weights/"; }
echo "== done in $SECONDS s" | tee -a "$OUT/log.txt"
exit $failed
