"""A cluster on one machine to try batch queues with: Slurm, MongoDB with a password, a site file.

``python -m otf_workflows.testing.local_cluster up FOLDER`` (or ``down``, ``status``);
``deploy/local_cluster.sh`` calls it.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from otf_workflows.engine.host import write_private
from otf_workflows.engine.mongod import USER, EmbeddedMongod
from otf_workflows.errors import OtfError
from otf_workflows.settings import SITE_FILE_VARIABLE, private_folder
from otf_workflows.testing.slurm import LocalSlurm

if TYPE_CHECKING:
    from collections.abc import Sequence

DATABASE = "otf"
JOB = {"memory_MiB": 3000, "walltime_s": 3600, "max_idle_s": 30}
"""What one batch job of the toy cluster asks for."""


class LocalCluster:
    """Slurm with two nodes and a MongoDB server, both on the loopback interface.

    Parameters
    ----------
    folder
        Where everything lives; kept when the cluster goes down.
    cpus
        CPUs of each node.
    memory_MiB
        Memory of each node (MiB).
    """

    def __init__(self, folder: Path, *, cpus: int = 2, memory_MiB: int = 8000) -> None:
        self.folder = folder.expanduser().absolute()
        self.slurm = LocalSlurm(self.folder / "slurm", cpus=cpus, memory_MiB=memory_MiB)
        self.mongod = EmbeddedMongod(self.folder / "private", database=DATABASE)

    @property
    def site_file(self) -> Path:
        """The site file, for ``otf --site`` or ``$OTF_SITE_FILE``."""
        return self.folder / "site.yaml"

    @property
    def environment_file(self) -> Path:
        """A file to source: it names the site file, and Slurm's own."""
        return self.folder / "env.sh"

    def up(self) -> None:
        """Start what does not run, and write the site file and the environment.

        Raises
        ------
        ConfigurationError
            If Slurm or ``mongod`` is not installed, or does not start.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        private_folder(self.folder / "private")
        self.slurm.start()
        self.mongod.start()
        self._write_site()
        named = {**self.slurm.environment, SITE_FILE_VARIABLE: str(self.site_file)}
        lines = [f"export {key}={shlex.quote(value)}\n" for key, value in named.items()]
        self.environment_file.write_text("".join(lines), encoding="utf-8")

    def down(self) -> None:
        """Stop both; what is in the database stays."""
        self.slurm.stop()
        self.mongod.stop()

    def is_up(self) -> bool:
        """Tell whether both run."""
        return self.slurm.is_running() and self.mongod.is_running()

    def _write_site(self) -> None:
        """Write a site whose user may read and write one database, and nothing else.

        No GPU is asked for: that of the node ``gpu1`` is none.
        """
        import yaml

        where = self.mongod.address()
        content = {
            "state_dir": "private/state",
            "database": {
                "mode": "server",
                "host": where.host,
                "port": where.port,
                "name": DATABASE,
                "username": USER,
                "password_file": f"private/mongod/{USER}.password",
                "auth_source": where.auth_source,
            },
            "workers": {"control": {"count": 1}},
            "queues": {
                "dft": {"partition": "dft", "max_jobs": 2, **JOB},
                "md": {"partition": "gpu", "max_jobs": 1, **JOB},
                "train": {"partition": "gpu", "max_jobs": 1, **JOB},
            },
            "codes": {"espresso": {"command": shutil.which("pw.x") or "pw.x", "cores": 1}},
        }
        text = (
            "# Written by deploy/local_cluster.sh at every start; copy it before you change it.\n"
        )
        write_private(self.site_file, text + yaml.safe_dump(content, sort_keys=False))


def main(arguments: Sequence[str] | None = None) -> int:
    """Start, stop or show a cluster that outlives this program.

    Parameters
    ----------
    arguments
        Command line, without the program.
    """
    parser = argparse.ArgumentParser(prog="python -m otf_workflows.testing.local_cluster")
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpus", type=int, default=2, help="CPUs of each node")
    parser.add_argument("--memory-MiB", type=int, default=8000, help="memory of each node")
    options = parser.parse_args(arguments)
    cluster = LocalCluster(options.folder, cpus=options.cpus, memory_MiB=options.memory_MiB)
    try:
        if options.action == "up":
            cluster.up()
        elif options.action == "down":
            cluster.down()
            return 0
        return _show(cluster)
    except OtfError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def _show(cluster: LocalCluster) -> int:
    """Print what runs; the exit status is 1 if something does not."""
    if cluster.slurm.is_running():
        sys.stdout.write(cluster.slurm.run("sinfo", "-o", "%P %N %T %c %m %G"))
    else:
        sys.stdout.write("Slurm is down.\n")
    status = cluster.mongod.status()
    running = f"MongoDB listens on 127.0.0.1:{status.port}." if status.running else ""
    sys.stdout.write(f"{running or 'MongoDB is down.'}\n")
    return 0 if cluster.is_up() else 1


if __name__ == "__main__":
    sys.exit(main())
