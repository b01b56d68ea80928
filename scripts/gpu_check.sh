#!/usr/bin/env bash
# Checks and measures this package on a GPU in at most 8 minutes: scripts/gpu_check.sh [FOLDER] [--dry]
# Leaves a log of every part and gpu_check.json in FOLDER (default: gpu_check). --dry: all parts with tiny sizes on a CPU.
# Environment: PYTHON, an interpreter with PyTorch (default: python3 or python); WHEELS, a folder with wheels of what it
# lacks, which are installed for this run only. Needs no virtual environment and no ROS; see docs/benchmarks.md.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
has_torch='import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'
python=""
for candidate in ${PYTHON:-python3 python}; do
  if "$candidate" -c "$has_torch" 2>/dev/null; then python="$candidate" && break; fi
done
if [[ -z "$python" ]]; then
  echo "gpu_check: expected a Python with PyTorch, got none in: ${PYTHON:-python3 python} (set PYTHON)" >&2
  exit 2
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [[ -n "${WHEELS:-}" ]]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$work/site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$work/site:$root${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
"$python" "$root/scripts/gpu_check.py" --work "$work" "$@"
