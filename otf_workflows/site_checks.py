"""What ``otf doctor`` asks of a site and its machine: which files win, programs, GPU.

Nothing is written. A check that is all right may still carry advice (its hint).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from otf_workflows.errors import ConfigurationError
from otf_workflows.preflight import Check, attempt
from otf_workflows.settings import SITE_FILE_VARIABLE, site_candidates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otf_workflows.settings import Site

FIREWORKS_DEFAULT = "~/.fireworks"
JOBFLOW_DEFAULT = "~/.jobflow.yaml"
_PATIENCE_S = 30.0


# -- files -----------------------------------------------------------------------------------------


def configuration(site: Site) -> Check:
    """Tell which site file is in force, and which others are passed over."""
    found = [(origin, path) for origin, path in site_candidates() if path.is_file()]
    if site.source is None:
        detail = "no site file: this machine, an embedded database and local workers"
        return Check(name="site file", ok=True, detail=detail)
    winner = site.source.resolve()
    origins = [origin for origin, path in found if path.resolve() == winner]
    others = [f"{path} ({origin})" for origin, path in found if path.resolve() != winner]
    detail = f"{site.source} ({origins[0] if origins else '--site'})"
    if others:
        detail += f"; passed over: {', '.join(others)}"
    surprising = bool(others) and bool(origins)
    advice = f"unset {SITE_FILE_VARIABLE}, or name the file with --site, if another one is meant"
    return Check(name="site file", ok=True, detail=detail, hint=advice if surprising else None)


def foreign_files() -> Iterator[Check]:
    """Tell which settings files of FireWorks and jobflow are there, and what they do to us.

    Our workers take the database from the site file alone. FireWorks' own settings are in force
    all the same, and ``lpad`` or ``rlaunch`` by hand look for a database in these files.
    """
    yield _fireworks_file()
    yield _jobflow_file()


def _fireworks_file() -> Check:
    """Tell of FireWorks' files: it takes the first that it finds, the variable's last."""
    name = "FireWorks settings"
    named = os.environ.get("FW_CONFIG_FILE")
    if os.environ.get("MONGOMOCK_SERVERSTORE_FILE"):
        return Check(
            name=name,
            ok=False,
            detail="MONGOMOCK_SERVERSTORE_FILE makes FireWorks use a mock in the place of MongoDB",
            hint="unset MONGOMOCK_SERVERSTORE_FILE",
        )
    if named and not Path(named).is_file():
        return Check(
            name=name,
            ok=False,
            detail=f"FW_CONFIG_FILE names {named}, which does not exist",
            hint="unset FW_CONFIG_FILE",
        )
    home = Path(FIREWORKS_DEFAULT).expanduser()
    here = Path.cwd() / "FW_config.yaml"
    found = [file for file in (home / "FW_config.yaml", here) if file.is_file()]
    complaint = _import_complaint("fireworks") if found or named else None
    if complaint:
        file = here if here.is_file() else [*found, named][0]
        return Check(
            name=name,
            ok=False,
            detail=f"FireWorks does not start with {file}: {complaint}",
            hint=f"correct {file}, or move it away",
        )
    detail, advice = _in_force(home / "FW_config.yaml", here, Path(named) if named else None)
    pads = [folder / "my_launchpad.yaml" for folder in (here.parent, home)]
    pads = [file for file in pads if file.is_file()]
    if pads:
        detail += f"; lpad by hand would use {pads[0]}, campaigns use the site file"
        advice = advice or "use otf for campaigns; lpad -l FILE where you need lpad"
    return Check(name=name, ok=True, detail=detail, hint=advice)


def _in_force(home: Path, here: Path, named: Path | None) -> tuple[str, str | None]:
    """Tell which of FireWorks' settings files workers read, with advice if it surprises."""
    advice = None
    candidates = [file for file in (home, named) if file is not None and file.is_file()]
    if not candidates:
        detail = "its defaults"
    else:
        detail = f"{candidates[0]} in every worker ({_keys(candidates[0])})"
    if len(candidates) > 1:
        detail += f"; passed over: {candidates[1]} ($FW_CONFIG_FILE comes last)"
        advice = f"move {candidates[0]} away, if the other one is meant"
    if here.is_file():
        detail += f"; in this folder {here} ({_keys(here)}), which workers do not see"
        advice = advice or f"move it to {home}, if workers are meant"
    return detail, advice


def _import_complaint(package: str) -> str | None:
    """Return why a package cannot be imported; None if it can."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {package}"],
        capture_output=True, text=True, check=False, timeout=_PATIENCE_S,
    )  # fmt: skip
    lines = done.stderr.strip().splitlines()
    return (lines[-1] if lines else "no message") if done.returncode else None


def _jobflow_file() -> Check:
    """Tell of jobflow's file: one that is named but missing means a store in memory."""
    name = "jobflow settings"
    named = os.environ.get("JOBFLOW_CONFIG_FILE")
    file = Path(named or JOBFLOW_DEFAULT).expanduser()
    if named and not file.is_file():
        return Check(
            name=name,
            ok=False,
            detail=f"JOBFLOW_CONFIG_FILE names {named}, which does not exist: jobs started by "
            "other means than otf would keep their results in memory and lose them",
            hint="unset JOBFLOW_CONFIG_FILE",
        )
    if not file.is_file():
        return Check(name=name, ok=True, detail="none: outputs go to the site's database")
    detail = f"{file} is there; outputs of our jobs go to the site's database all the same"
    return Check(name=name, ok=True, detail=detail)


def _keys(file: Path) -> str:
    """Return which keys a settings file sets."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return "it cannot be read"
    return "sets " + ", ".join(sorted(content)) if isinstance(content, dict) else "it is empty"


# -- programs --------------------------------------------------------------------------------------


def programs(site: Site) -> Iterator[Check]:
    """Yield whether the programs of the site's DFT codes are found here, and would start.

    They are not run: some would wait for input, others take a licence.

    Parameters
    ----------
    site
        The site.
    """
    for code, resources in site.codes.items():
        words = shlex.split(resources.command)
        if not words:
            continue
        name = f"program of '{code}'"
        # First and last word: a launcher such as srun, and the program; options are passed over.
        named = [word for word in dict.fromkeys((words[0], words[-1])) if not word.startswith("-")]
        missing = [word for word in named if shutil.which(word) is None]
        lacking = [] if missing else missing_libraries(named[-1])
        if missing:
            detail = f"{' and '.join(missing)} not found"
        elif lacking:
            detail = f"{named[-1]} does not start: {', '.join(lacking)} not found"
        else:
            found = shutil.which(named[-1])
            yield Check(name=name, ok=True, detail=f"'{resources.command}' ({found})")
            continue
        yield Check(
            name=name,
            ok=False,
            detail=detail,
            hint="add 'module load …' to environment of queues.dft, or to the shell that starts "
            f"workers, or give the whole path as command of codes.{code}",
        )


def missing_libraries(program: str) -> list[str]:
    """Return the shared libraries that a program needs and the loader does not find."""
    path, ldd = shutil.which(program), shutil.which("ldd")
    if path is None or ldd is None:
        return []
    try:
        done = subprocess.run(
            [ldd, path], capture_output=True, text=True, check=False, timeout=_PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = done.stdout.splitlines()
    return [line.split()[0] for line in lines if line.endswith("=> not found")]


# -- machine ---------------------------------------------------------------------------------------


def gpu(*, wanted: bool) -> Check:
    """Look for GPUs, and whether PyTorch can use them.

    Parameters
    ----------
    wanted
        Whether it is a failure if there is none.
    """
    found = _listed_gpus()
    if not found and not wanted:
        detail = "none on this machine: potentials run on the CPU"
        return Check(name="GPU", ok=True, detail=detail)

    def look() -> str:
        code = "import torch; print(torch.cuda.device_count(), torch.__version__)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=False, timeout=_PATIENCE_S * 4,
        )  # fmt: skip
        count, _, version = done.stdout.strip().partition(" ")
        if count.isdigit() and int(count) > 0:
            return f"{count} for PyTorch {version}: {'; '.join(found) or 'not named'}"
        here = "; ".join(found) or f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}"
        raise ConfigurationError(
            f"PyTorch {version or '(not installed)'} sees no GPU ({here})",
            hint=f"{sys.executable} -m pip install torch, built for CUDA (see pytorch.org)"
            if found
            else "check device in the site file, and gpus, partition and directives of this queue",
        )

    return attempt("GPU", look)


def _listed_gpus() -> list[str]:
    """Return the GPUs that the driver lists."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=_PATIENCE_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []
