#!/usr/bin/env bash
# A cluster on this machine, to try batch queues with: two Slurm nodes and MongoDB with a password.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: deploy/local_cluster.sh up|down|status [--cpus N] [--memory-MiB N] [FOLDER]

  up        start Slurm (nodes cpu1 and gpu1, partitions dft and gpu) and MongoDB, write
            FOLDER/site.yaml and FOLDER/env.sh, and tell what to do next
  down      stop both; jobs are killed, the database stays in FOLDER
  status    tell what runs; exit status 1 if something does not
  FOLDER    default: .otf/cluster in this checkout; at most 80 characters, no blanks

Everything listens on the loopback interface and runs as you; no rights are needed but to install
the programs: deploy/setup.sh --dev does, or apt-get install slurm-wlm munge.

Exit status: 0 done; 1 not running; 2 wrong usage; 5 something must be installed.
TEXT
}

die() { # die STATUS LINE...
  local status=$1
  shift
  printf '%s\n' "$@" >&2
  exit "$status"
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
action=
folder=$root/.otf/cluster
options=()

while [[ $# -gt 0 ]]; do
  case $1 in
  -h | --help) usage && exit 0 ;;
  --cpus | --memory-MiB)
    [[ ${2:-} =~ ^[0-9]+$ ]] || die 2 "$1 wants a number" "next: deploy/local_cluster.sh --help"
    options+=("$1" "$2")
    shift
    ;;
  -*) die 2 "Unknown option: $1" "next: deploy/local_cluster.sh --help" ;;
  up | down | status)
    if [[ -z $action ]]; then action=$1; else folder=$1; fi
    ;;
  *)
    [[ -n $action ]] || die 2 "Unknown action: $1" "next: deploy/local_cluster.sh --help"
    folder=$1
    ;;
  esac
  shift
done
[[ -n $action ]] || { usage >&2 && exit 2; }

python=$root/.venv/bin/python
[[ -x $python ]] || python=$(command -v python3 || true)
"${python:-false}" -P -c 'import otf_workflows, psutil' 2>/dev/null ||
  die 5 "OTF Workflows is not installed for ${python:-python3}." "next: deploy/setup.sh --dev"

"$python" -P -m otf_workflows.testing.local_cluster "$action" "${options[@]}" "$folder"

if [[ $action == up ]]; then
  folder=$(cd -- "$folder" && pwd -P)
  cat >&2 <<TEXT

The cluster is up. In every shell that uses it:
  source $(printf '%q' "$folder/env.sh")
then
  otf doctor --queue-test
  otf submit flows/si_teacher/campaign.yaml
  otf launch
TEXT
fi
