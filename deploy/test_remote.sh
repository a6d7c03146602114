#!/usr/bin/env bash
# Tests of the engine jobflow-remote, in an environment of their own: it wants an older pymongo.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: deploy/test_remote.sh [--python PATH] [-- PYTEST OPTIONS]

Lays an environment with jobflow-remote over the one of deploy/setup.sh (torch and all else are
shared, nothing in it is changed) and runs the tests that need it.

  --python PATH   Python of that environment; default: .venv/bin/python
  -- OPTIONS      handed to pytest
  --help          this text

Exit status: 0 if everything passed.
TEXT
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
python=$root/.venv/bin/python

while [[ $# -gt 0 ]]; do
  case $1 in
  --python)
    python=${2:?--python needs a path}
    shift
    ;;
  -h | --help) usage && exit 0 ;;
  --)
    shift
    break
    ;;
  *)
    printf '%s\n' "Unknown option: $1" "next: deploy/test_remote.sh --help" >&2
    exit 2
    ;;
  esac
  shift
done

cd "$root"
if [[ ! -x $python ]]; then
  printf '%s\n' "There is no Python at $python" "next: deploy/setup.sh --dev" >&2
  exit 5
fi

mine=$root/.venv-remote
where='import sysconfig; print(sysconfig.get_path("purelib"))'
if [[ ! -x $mine/bin/python ]]; then
  "$python" -m venv --without-pip "$mine"
fi
below=$("$python" -c "$where")
above=$("$mine/bin/python" -c "$where")
printf 'import site; site.addsitedir("%s")\n' "$below" >"$above/zz_below.pth"
# Only what differs is installed: jobflow-remote, what it alone needs, and the older pymongo.
"$python" -m pip --python "$mine/bin/python" install --quiet 'jobflow-remote>=1.0.1,<1.1'

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$mine/bin/python" -m pytest -n auto --maxprocesses 2 --dist loadgroup \
  tests/engine/remote tests/e2e/test_two_engines.py "$@"
