#!/usr/bin/env bash
# The first command of the README: sets up what is missing, then runs a whole campaign.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: deploy/quickstart.sh [--setup-only] [--campaign FILE] [--report FILE] [-- OPTIONS]

Sets up this checkout (see deploy/setup.sh --help), then runs an on-the-fly campaign on lithium
chloride with Quantum ESPRESSO as the teacher, and writes a report. Interrupt it whenever you
like: the same command continues, and computes no label twice.

  --setup-only      stop after setting up
  --campaign FILE   another campaign file (default: flows/licl/campaign.yaml)
  --report FILE     where the report goes (default: runs/CAMPAIGN/report.html in the checkout)
  -- OPTIONS        handed to 'otf run'
  --help            this text

Exit status: that of deploy/setup.sh if it fails, else that of 'otf run'
(docs/reference/exit_codes.md).
TEXT
}

wrong() {
  printf '%s\n' "$1" "next: deploy/quickstart.sh --help" >&2
  exit 2
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
campaign=$root/flows/licl/campaign.yaml
report=
setup_only=no

while [[ $# -gt 0 ]]; do
  case $1 in
  --setup-only) setup_only=yes ;;
  --campaign | --report)
    [[ $# -gt 1 ]] || wrong "$1 needs a file"
    if [[ $1 == --campaign ]]; then campaign=$2; else report=$2; fi
    shift
    ;;
  -h | --help) usage && exit 0 ;;
  --)
    shift
    break
    ;;
  *) wrong "Unknown option: $1" ;;
  esac
  shift
done

if [[ $setup_only == no && ! -r $campaign ]]; then wrong "No such campaign file: $campaign"; fi

"$root/deploy/setup.sh"
if [[ $setup_only == yes ]]; then exit 0; fi

if [[ -z $report ]]; then
  report=$root/runs/$(basename -- "$(dirname -- "$(realpath -- "$campaign")")")/report.html
fi
mkdir -p -- "$(dirname -- "$report")"
exec "$root/.venv/bin/otf" run "$campaign" --report "$report" "$@"
