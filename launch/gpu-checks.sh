#!/usr/bin/env bash
# Runs the tests and benchmarks that need a CUDA device, without Ray, DeepSpeed or a video library. Requires torch 2.11
# or newer, einops, pytest, click, pydantic and PyYAML. Writes its report to $OUT (default: runs/gpu).
#
#   launch/gpu-checks.sh            PYTHON=python3.12 launch/gpu-checks.sh            DEVICE=cpu for a dry run
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
OUT=${OUT:-runs/gpu}
SIZES=${SIZES:-"nano small base large"}
MAIN=${MAIN:-base}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT"
failed=0

run() {  # run NAME COMMAND...: copies the output to $OUT/NAME.txt; a failure does not stop the remaining checks.
  local name=$1
  shift
  echo "== $name: $*"
  "$@" 2>&1 | tee "$OUT/$name.txt"
  if [ "${PIPESTATUS[0]}" != 0 ]; then
    echo "== $name FAILED"
    failed=1
  fi
}

run machine "$PYTHON" -c 'import platform, torch; print(platform.python_version(), torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device")'
if [ "$DEVICE" = cuda ]; then
  VIDVQ_REQUIRE_GPU=1 run tests "$PYTHON" -m pytest tests/gpu/test_cuda.py -m gpu -q -p no:cacheprovider --noconftest
fi
# shellcheck disable=SC2086
run bf16 "$PYTHON" benchmarks/model.py $SIZES --device "$DEVICE" --dtype bfloat16
run bf16-compiled "$PYTHON" benchmarks/model.py "$MAIN" --device "$DEVICE" --dtype bfloat16 --compiled
run fp32 "$PYTHON" benchmarks/model.py "$MAIN" --device "$DEVICE"
run agreement "$PYTHON" benchmarks/model.py "$MAIN" --device "$DEVICE" --agreement
exit $failed
