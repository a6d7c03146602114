#!/usr/bin/env python3
"""Check, or fetch anew, the browser libraries that the dashboard brings along.

    python deploy/vendor_assets.py            # compare every file with VENDOR.toml
    python deploy/vendor_assets.py --fetch    # write them again from the npm registry

A new version: change ``version`` in VENDOR.toml, fetch with ``--accept``, and read the diff.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

VENDOR = Path(__file__).parents[1] / "otf_workflows" / "dashboard" / "static" / "vendor"
LIST = VENDOR / "VENDOR.toml"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fetch", action="store_true", help="write the files again with npm")
    parser.add_argument("--accept", action="store_true", help="note the hashes of what was fetched")
    options = parser.parse_args()
    libraries = tomllib.loads(LIST.read_text(encoding="utf-8"))
    if options.fetch:
        for library in libraries.values():
            fetch(library)
    problems = check(libraries)
    if options.accept and problems:
        accept(libraries)
        problems = check(tomllib.loads(LIST.read_text(encoding="utf-8")))
    for sentence in problems:
        print(sentence, file=sys.stderr)
    if not problems:
        print(f"{len(libraries)} libraries are as listed in {LIST.name}.")
    return 1 if problems else 0


def fetch(library: dict) -> None:
    """Write the files of one library from its npm package."""
    wanted = f"{library['package']}@{library['version']}"
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["npm", "pack", "--silent", wanted],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        archive = Path(folder) / packed.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            for name, file in library["files"].items():
                member = tar.extractfile(f"package/{file['from']}")
                if member is None:
                    sys.exit(f"{wanted} has no file {file['from']}")
                (VENDOR / name).write_bytes(member.read())
    print(f"fetched {wanted}")


def check(libraries: dict) -> list[str]:
    """Return what differs from the list, in sentences."""
    problems = []
    listed = {LIST.name}
    for library in libraries.values():
        for name, file in library["files"].items():
            listed.add(name)
            path = VENDOR / name
            if not path.is_file():
                problems.append(f"{name} is missing; run with --fetch")
            elif digest(path) != file["sha256"]:
                problems.append(f"{name} is not the file that is listed ({digest(path)})")
    there = {path.name for path in VENDOR.iterdir()}
    return problems + [f"{name} is not listed" for name in sorted(there - listed)]


def accept(libraries: dict) -> None:
    """Write the hashes of the files as they are into the list."""
    text = LIST.read_text(encoding="utf-8")
    for library in libraries.values():
        for name, file in library["files"].items():
            text = text.replace(file["sha256"], digest(VENDOR / name))
    LIST.write_text(text, encoding="utf-8")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
