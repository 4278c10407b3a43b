#!/usr/bin/env bash
# Runs the tests and benchmarks that need a CUDA device, the most valuable first, within BUDGET_S seconds. Needs neither
# Ray, DeepSpeed nor a video library: torch 2.11 or newer, einops, numpy, pytest, click, pydantic and PyYAML. Every part
# writes its output to $OUT (default: runs/gpu) as it goes, so that an early end loses little.
#
#   launch/gpu-checks.sh            PYTHON=python3.12 launch/gpu-checks.sh            DEVICE=cpu for a dry run
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
OUT=${OUT:-runs/gpu}
BUDGET_S=${BUDGET_S:-540}
HALF=bfloat16
# Most CPUs have no bf16 arithmetic, and emulate it slowly.
[ "$DEVICE" != cpu ] || HALF=float32
SIZES=${SIZES:-"nano small base large"}
MAIN=${MAIN:-base}
SHAPES=${SHAPES:-1x1,1x9,8x9,32x9}
SIDE=${SIDE:-256}
ROUNDS=${ROUNDS:-5}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT"
failed=0
SECONDS=0

part() {  # part NAME LIMIT_S COMMAND...: a failure, or a part that takes too long, does not stop the others.
  local name=$1 limit=$2 left=$((BUDGET_S - SECONDS))
  shift 2
  if [ "$left" -le 5 ]; then
    echo "== $name: no time left" | tee "$OUT/$name.txt"
    failed=1
    return
  fi
  [ "$limit" -lt "$left" ] || limit=$left
  echo "== $name (at most $limit s): $*"
  timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$OUT/$name.txt"
  if [ "${PIPESTATUS[0]}" != 0 ]; then
    echo "== $name FAILED"
    failed=1
  fi
}

steps() {  # steps MODE DTYPE LIMIT_S
  part "steps-$1-$2" "$3" "$PYTHON" benchmarks/steps.py "$MAIN" --device "$DEVICE" --dtype "$2" --mode "$1" \
    --shapes "$SHAPES" --side "$SIDE" --rounds "$ROUNDS"
}

part machine 60 "$PYTHON" -c 'import platform, torch; print(platform.python_version(), torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device")'
steps eager "$HALF" 60
if [ "$DEVICE" = cuda ]; then
  steps captured bfloat16 120
  export VIDVQ_REQUIRE_GPU=1
  part tests 120 "$PYTHON" -m pytest tests/gpu/test_cuda.py -m gpu -q -p no:cacheprovider --noconftest
  steps compiled bfloat16 90
fi
[ "$HALF" = float32 ] || steps eager float32 60
# shellcheck disable=SC2086
part sizes 120 "$PYTHON" benchmarks/model.py $SIZES --device "$DEVICE" --dtype "$HALF"
part agreement 60 "$PYTHON" benchmarks/model.py "$MAIN" --device "$DEVICE" --agreement
cat "$OUT"/steps-*.txt > "$OUT/steps.jsonl" 2>/dev/null
echo "== done in $SECONDS s"
exit $failed
