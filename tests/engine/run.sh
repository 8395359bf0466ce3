#!/usr/bin/env bash
# The real-engine lane. usage: tests/engine/run.sh [pytest arguments]
# PYTHON is the interpreter the product is installed in. See README.md beside this file.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}

own_workers=1
what=(tests/engine)
for argument in "$@"; do
  case $argument in
    --engine-url | --engine-url=*) own_workers=0 ;;
    tests/engine/*) what=() ;; # given among the arguments
  esac
done
if [ "$own_workers" = 1 ]; then
  "$python" "$here/kit/provision.py" > /dev/null
fi

cd "$here/../.."
# pyproject.toml keeps this folder out of the everyday run and holds tests to a minute: both are replaced here, for
# the first test of a session waits for workers to start.
exec "$python" -m pytest "${what[@]}" -p no:cacheprovider \
  -o addopts="--import-mode=importlib -ra --strict-markers" -o timeout=420 --durations=5 "$@"
