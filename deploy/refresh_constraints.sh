#!/usr/bin/env bash
# Writes deploy/constraints.txt anew: the newest versions that pyproject.toml admits.
# Run deploy/test.sh --all afterwards, and commit the file only if it passes.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
torch=$(sed -n 's/^torch==//p' "$root/deploy/constraints.txt")
scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT

"${OTF_PYTHON:-python3}" -m venv "$scratch/venv"
pip() { "$scratch/venv/bin/python" -m pip --disable-pip-version-check "$@"; }
# PyTorch stays as it is: its version is raised by hand, in deploy/constraints.txt.
pip install --quiet --no-deps "torch==$torch+cpu" ||
  pip install --quiet --no-deps --index-url https://download.pytorch.org/whl/cpu "torch==$torch+cpu"
printf 'torch==%s\n' "$torch" >"$scratch/torch.txt"
pip install --quiet --constraint "$scratch/torch.txt" --editable "${root}[local,dev]"
{
  grep '^#' "$root/deploy/constraints.txt"
  pip freeze --exclude-editable | sed 's/^\(torch==.*\)+cpu$/\1/'
} >"$scratch/constraints.txt"
cp -- "$scratch/constraints.txt" "$root/deploy/constraints.txt"
git -C "$root" --no-pager diff --stat -- deploy/constraints.txt
