#!/usr/bin/env bash
# Runs a command in the environment that `make setup` built: scripts/with_env.sh decaf segment --help
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ ! -f "$root/install/setup.bash" || $# -eq 0 ]]; then
  echo "usage: scripts/with_env.sh COMMAND [ARGUMENT...], after 'make setup'" >&2
  exit 2
fi
# Removes the variables of a sourced ROS distribution and of another virtual environment.
if [[ -n "${AMENT_PREFIX_PATH:-}" ]]; then unset LD_LIBRARY_PATH; fi
unset PYTHONPATH PYTHONHOME AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH ROS_DISTRO RMW_IMPLEMENTATION \
  _ROS_WHEELS_BOOTSTRAP_COMPLETE
set +u # the scripts use unset variables
source "$root/.venv/bin/activate"
source "$root/install/setup.bash"
set -u
# The checkout comes first: only the generated messages are used from the installed package.
export PYTHONPATH="$root:$PYTHONPATH" PATH="$root/bin:$PATH"
exec "$@"
