"""jobflow-remote's project file, written from the site file.

It holds neither user nor password of the database: the stores in it are ours and find both
through the site file. ``jf job list`` and the like work with it, too, under the variables that
:func:`surroundings` returns; only the runner must be ours.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.remote.resources import batch_options
from otf_workflows.errors import ConfigurationError
from otf_workflows.settings import SITE_FILE_VARIABLE, STATE_DIR_VARIABLE, Worker
from otf_workflows.types import Role

if TYPE_CHECKING:
    from otf_workflows.settings import Site

FOLDER_VARIABLE = "JFREMOTE_PROJECTS_FOLDER"
PROJECT_VARIABLE = "JFREMOTE_PROJECT"
INSTALL = "pip install 'otf-workflows[remote]'"

COLLECTIONS = {
    "jobs": "jf_jobs",
    "flows_collection": "jf_flows",
    "auxiliary_collection": "jf_auxiliary",
    "batches_collection": "jf_batches",
}
"""Names of jobflow-remote's collections in the site's database."""

EXECUTE = "otf_workflows.engine.remote.execute"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_WRITTEN_BY = "otf-workflows"

# Hours of a login node that does not answer: 10 s, 1 min, then every 5 minutes.
_RETRIES = {"max_step_attempts": 50, "delta_retry": [10, 60, 300]}


def surroundings(site: Site) -> dict[str, str]:
    """Return the variables under which jobflow-remote finds our project; the user's own win."""
    folder = os.environ.get(FOLDER_VARIABLE) or str(site.resolved_state_dir / "jobflow-remote")
    return {
        FOLDER_VARIABLE: str(Path(folder).expanduser()),
        PROJECT_VARIABLE: os.environ.get(PROJECT_VARIABLE) or "otf",
    }


def write_project(site: Site) -> Path:
    """Write the project file (mode 0600) and return its path.

    Raises
    ------
    ConfigurationError
        If a file of this name is somebody else's, or the site file asks for what cannot work.
    """
    import yaml

    from otf_workflows.engine.host import write_private

    variables = surroundings(site)
    folder, name = Path(variables[FOLDER_VARIABLE]), variables[PROJECT_VARIABLE]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    document = project_document(site)
    _refuse_foreign(file, document["metadata"])
    write_private(file, yaml.safe_dump(document, sort_keys=False))
    return file


def project_document(site: Site) -> dict[str, Any]:
    """Return the project as jobflow-remote reads it.

    Parameters
    ----------
    site
        The site; each role becomes one worker.
    """
    from otf_workflows.engine.supervisor import site_file

    if Role.CONTROL in site.queues:
        raise ConfigurationError(
            "Control jobs need the database, so they cannot go to a batch queue here.",
            where="queues.control of the site file",
            hint="remove it: they run beside the runner",
        )
    file = str(site_file(site))
    stores = "otf_workflows.engine.remote.stores"
    documents = {"@module": stores, "@class": "SiteDocuments", "site_file": file}
    blobs = {"@module": stores, "@class": "SiteBlobs", "site_file": file}
    from otf_workflows.connection import OUTPUTS

    poll_s = site.remote.poll_s
    name = surroundings(site)[PROJECT_VARIABLE]
    return {
        "name": name,
        "base_dir": str(site.resolved_state_dir / "jobflow-remote" / name),
        "metadata": {"written_by": _WRITTEN_BY, "site_file": file},
        "runner": {
            "delay_checkout": poll_s,
            "delay_check_run_status": poll_s,
            "delay_advance_status": poll_s,
            **_RETRIES,
        },
        "queue": {
            "store": {**documents, "collection_name": COLLECTIONS["jobs"]},
            **{key: value for key, value in COLLECTIONS.items() if key != "jobs"},
        },
        "jobstore": {
            "@module": "jobflow.core.store",
            "@class": "JobStore",
            "docs_store": {**documents, "collection_name": OUTPUTS},
            "additional_stores": {"data": blobs},
        },
        "workers": {str(role): worker_document(site, role, site_file=file) for role in Role},
    }


def worker_document(site: Site, role: Role, *, site_file: str) -> dict[str, Any]:
    """Return the worker of a role: this machine's shell, or a batch queue here or over SSH.

    Parameters
    ----------
    site, role
        The site, and which of its roles.
    site_file
        Where jobs of this machine find the site.
    """
    work_dir = work_folder(site, role)
    queue, remote = site.queues.get(role), site.remote
    if queue is None:
        threads = site.workers.get(role, Worker()).threads
        lines = _exports(site_file, str(site.resolved_state_dir), threads)
        return {
            "type": "local",
            "scheduler_type": "shell",
            "work_dir": str(work_dir),
            "pre_run": "\n".join(lines),
            "execution_cmd": _execution(sys.executable, with_database=role is Role.CONTROL),
        }
    if remote.host and queue.python is None:
        raise ConfigurationError(
            f"Nobody said which Python runs the {role} jobs on {remote.host}.",
            where=f"queues.{role}.python of the site file",
            hint=f"name one that has had: {INSTALL}",
        )
    theirs = remote.site_file
    lines = _exports(
        str(theirs or site_file),
        None if theirs else str(site.resolved_state_dir),
        queue.cores_per_rank,
    )
    document: dict[str, Any] = {
        "type": "local",
        "scheduler_type": str(queue.kind),
        "work_dir": str(work_dir),
        "pre_run": "\n".join([*lines, *queue.environment]),
        "execution_cmd": _execution(queue.python or sys.executable),
        "resources": batch_options(queue),
    }
    if remote.host:
        # What the compute node wrote last takes a while to be seen from the login node.
        document |= {"type": "remote", "host": remote.host, "delay_download": 5}
        document |= {"user": remote.user, "port": remote.port}
        if remote.key_file is not None:
            document["key_filename"] = str(remote.key_file.expanduser())
    return document


def work_folder(site: Site, role: Role) -> Path:
    """Return the folder in which each job of a role gets one of its own.

    Raises
    ------
    ConfigurationError
        If a batch script could not write it down.
    """
    shared = site.remote.work_dir if role in site.queues else None
    folder = (shared or site.resolved_state_dir / "jobs") / str(role)
    if len(str(folder).split()) != 1:
        raise ConfigurationError(
            "The folder of the jobs has a blank in its name, which batch scripts do not stand.",
            where=str(folder),
            hint="choose another one as remote.work_dir, or another state folder",
        )
    return folder


def _execution(python: str, *, with_database: bool = False) -> str:
    command = f"{shlex.quote(python)} -m {EXECUTE} {{}}"
    return f"{command} --with-database" if with_database else command


def _exports(site_file: str, state_dir: str | None, threads: int) -> list[str]:
    """Return shell lines under which a job finds its site, whatever the runner's own are."""
    lines = [f"export {SITE_FILE_VARIABLE}={shlex.quote(site_file)}"]
    if state_dir is None:
        lines.append(f"unset {STATE_DIR_VARIABLE}")
    else:
        lines.append(f"export {STATE_DIR_VARIABLE}={shlex.quote(state_dir)}")
    return [*lines, *(f"export {name}={threads}" for name in THREAD_VARIABLES)]


def _refuse_foreign(file: Path, mine: dict[str, str]) -> None:
    """Refuse to write over a project that we did not write, or wrote for another site."""
    import yaml

    if not file.exists():
        return
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict) or found.get("metadata") != mine:
        raise ConfigurationError(
            "There is a jobflow-remote project of this name that is not this site's.",
            where=str(file),
            hint=f"choose another name: export {PROJECT_VARIABLE}=otf-2",
        )
