#!/usr/bin/env bash
# Tests of an optional extra, in an environment of its own above that of deploy/setup.sh.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: deploy/test_extra.sh remote|sevennet [--python PATH] [-- PYTEST OPTIONS]

Lays an environment with one optional extra over that of deploy/setup.sh (torch and all else are
shared, nothing in it is changed) and runs the tests that need it.

  remote          the engine jobflow-remote, which wants an older pymongo
  sevennet        the potentials of the family SevenNet
  --python PATH   Python of that environment; default: .venv/bin/python
  -- OPTIONS      handed to pytest
  --help          this text

Exit status: 0 if everything passed.
TEXT
}

refuse() { # refuse STATUS SENTENCE NEXT
  printf '%s\n' "$2" "next: $3" >&2
  exit "$1"
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
python=$root/.venv/bin/python
extra=

while [[ $# -gt 0 ]]; do
  case $1 in
  remote | sevennet) extra=$1 ;;
  --python)
    python=${2:?--python needs a path}
    shift
    ;;
  -h | --help) usage && exit 0 ;;
  --)
    shift
    break
    ;;
  *) refuse 2 "Unknown option: $1" "deploy/test_extra.sh --help" ;;
  esac
  shift
done

case $extra in
remote)
  wanted='jobflow-remote>=1.0.1,<1.1'
  tests=(tests/engine/remote tests/engine/test_every_engine.py tests/e2e/test_two_engines.py)
  ;;
sevennet)
  wanted='sevenn>=0.13,<0.14'
  # its campaign from end to end takes ten minutes: deploy/test_extra.sh sevennet -- -m ""
  tests=(-m "not slow" tests/potentials/test_sevennet.py tests/potentials/test_headed.py
    tests/potentials/test_registry.py tests/test_levels.py tests/e2e/test_sevennet.py)
  ;;
*) refuse 2 "Which extra?" "deploy/test_extra.sh --help" ;;
esac

cd "$root"
[[ -x $python ]] || refuse 5 "There is no Python at $python" "deploy/setup.sh --dev"

mine=$root/.venv-$extra
where='import sysconfig; print(sysconfig.get_path("purelib"))'
if [[ ! -x $mine/bin/python ]]; then
  "$python" -m venv --without-pip "$mine"
fi
below=$("$python" -c "$where")
above=$("$mine/bin/python" -c "$where")
printf 'import site; site.addsitedir("%s")\n' "$below" >"$above/zz_below.pth"
# Only what differs is installed: the package, and what it alone needs.
"$python" -m pip --python "$mine/bin/python" install --quiet "$wanted"

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$mine/bin/python" -m pytest -n auto --maxprocesses 2 --dist loadgroup \
  "${tests[@]}" "$@"
