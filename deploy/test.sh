#!/usr/bin/env bash
# The second command of the README: sets up what is missing, then checks and tests everything.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: deploy/test.sh [--all] [--checks-only] [-- PYTEST OPTIONS]

Sets up this checkout with the test tools, then runs style, type and import checks and the tests:
unit, integration (a real mongod, a real pw.x, a real Slurm whose nodes fail) and a campaign from
end to end. The tests of two optional extras follow in environments of their own
(deploy/test_extra.sh).

  --all           the tests marked slow as well, and those of CP2K, ABINIT and GPAW, which
                  deploy/setup.sh --dft-codes installs first
  --checks-only   no tests
  -- OPTIONS      handed to pytest; the tests of extras are left out then
  --help          this text

Exit status: 0 if everything passed.
TEXT
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
marks="not slow and not dft_codes"
codes=()
checks_only=no

while [[ $# -gt 0 ]]; do
  case $1 in
  --all) marks="slow or not slow" codes=(--dft-codes) ;; # every test
  --checks-only) checks_only=yes ;;
  -h | --help) usage && exit 0 ;;
  --)
    shift
    break
    ;;
  *)
    printf '%s\n' "Unknown option: $1" "next: deploy/test.sh --help" >&2
    exit 2
    ;;
  esac
  shift
done

"$root/deploy/setup.sh" --dev "${codes[@]}"
cd -- "$root"
python=$root/.venv/bin/python
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

failed=()
check() { # check NAME COMMAND... : remember a failure, go on with the rest
  local name=$1 begin=$SECONDS
  shift
  if "$@"; then
    printf 'ok      %s (%d s)\n' "$name" $((SECONDS - begin))
  else
    printf 'FAILED  %s\n' "$name"
    failed+=("$name")
  fi
}

check "ruff check" "$python" -m ruff check --quiet .
check "ruff format" "$python" -m ruff format --check --quiet .
check "import contracts" "$root/.venv/bin/lint-imports" --no-cache
check "mypy" "$python" -m mypy --no-error-summary

status=0
if [[ ${#failed[@]} -gt 0 ]]; then
  printf 'Failed checks: %s\n' "${failed[*]}"
  status=1
fi
if [[ $checks_only == no && $# -gt 0 ]]; then # a selection of the tests of this environment
  "$python" -m pytest -n auto --maxprocesses 4 --dist loadgroup -m "$marks" "$@" || status=$?
elif [[ $checks_only == no ]]; then
  "$python" -m pytest -n auto --maxprocesses 4 --dist loadgroup -m "($marks) and not alone" ||
    status=$?
  # These kill services at random moments, and judge by what the machine does then.
  if ! "$python" -m pytest -n 0 -m "($marks) and alone"; then
    printf '%s\n' "The tests marked 'alone' failed, see above. Once more, to tell chance from fault:"
    "$python" -m pytest -n 0 -m "($marks) and alone" || status=$?
  fi
  "$root/deploy/test_extra.sh" remote || status=$?
  "$root/deploy/test_extra.sh" sevennet || status=$?
fi
exit "$status"
