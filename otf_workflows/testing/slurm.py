"""A real, private Slurm on this machine: two nodes, partitions ``dft`` and ``gpu``, any user.

Everything listens on the loopback interface and lies in one folder; no service manager, no cgroups
and no accounting database are needed, only the programs of the packages slurm-wlm and munge. It is
meant for tests and for a first look at batch queues, not for sharing a machine.

``python -m otf_workflows.testing.slurm up FOLDER`` (or ``down``, ``status``) does it by hand, and
``run FOLDER -- COMMAND`` has one for as long as a command runs.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from otf_workflows.engine.host import free_port, write_private
from otf_workflows.errors import ConfigurationError, OtfError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psutil

PARTITIONS = {"dft": "cpu1", "gpu": "gpu1"}
"""Partition → its only node."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
INSTALL = "apt-get install --no-install-recommends slurm-wlm munge"
PATIENCE_S = 180.0
"""How long daemons may take to come up, and nodes to become idle (s); a busy machine is slow."""
HANGS_S = 10.0
"""A daemon that has not ended for so long is killed (s)."""
LONGEST_FOLDER = 80
"""The path of munge's socket, a little longer than its folder, must stay below 108 bytes."""

_CONF = """\
ClusterName=otf
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Without cgroups, memory is watched by sampling.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
MpiDefault=none
MailProg=/bin/true
# A node that was not heard of serves again when it is back, one that was set down does not; jobs
# get time to put things in order between SIGTERM and SIGKILL.
ReturnToService=1
KillWait=20
# On a busy machine somebody may ask late for a job that has ended.
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={memory_per_cpu_MiB}
# The nodes may have more cores than the machine beneath them: enough for a look at queues.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=DEFAULT CPUs={cpus} RealMemory={memory_MiB} State=UNKNOWN
NodeName=cpu1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={cpu_port}
NodeName=gpu1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={gpu_port} Gres=gpu:1
PartitionName=dft Nodes=cpu1 Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=gpu1 MaxTime=INFINITE State=UP
"""
"""Settings (slurm.conf(5), Slurm 22.05) with which two slurmd share one host without privileges."""

_GRES = "NodeName=gpu1 Name=gpu File=/dev/null\n"
"""A GPU that is none: Slurm hands it out and sets CUDA_VISIBLE_DEVICES."""


class LocalSlurm:
    """A cluster of two nodes; any number of these objects may speak of the same folder.

    ``with LocalSlurm() as slurm:`` starts it and leaves nothing behind. ``sbatch`` and the others
    find it through :attr:`environment`.

    Parameters
    ----------
    folder
        Where it lives, kept at the end; a folder of its own in the temporary directory if none.
    cpus
        CPUs of each node.
    memory_MiB
        Memory of each node (MiB).
    """

    def __init__(
        self, folder: Path | None = None, *, cpus: int = 2, memory_MiB: int = 8000
    ) -> None:
        self._temporary = folder is None
        self.folder = folder.absolute() if folder else Path(tempfile.mkdtemp(prefix="otf-slurm-"))
        self.cpus = cpus
        self.memory_MiB = memory_MiB

    @property
    def conf(self) -> Path:
        """The ``slurm.conf``."""
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which Slurm's programs find this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    def __enter__(self) -> Self:
        """Start everything."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self.stop()

    def is_running(self) -> bool:
        """Tell whether the controller lives."""
        return self._process("slurmctld") is not None

    def start(self) -> bool:
        """Start all daemons and wait until both nodes are idle.

        Returns
        -------
        bool
            False if it was running already.

        Raises
        ------
        ConfigurationError
            If programs are missing, the path of the folder is too long, or nodes do not come up.
        """
        missing = missing_programs()
        if missing:
            raise ConfigurationError(
                f"Slurm is not installed: {', '.join(missing)} not found.", hint=INSTALL
            )
        if len(str(self.folder)) > LONGEST_FOLDER or " " in str(self.folder):
            raise ConfigurationError(
                "The path of the folder is too long, or has blanks, for Slurm and munge.",
                where=str(self.folder),
                hint=f"choose another one, of at most {LONGEST_FOLDER} characters",
            )
        if self.is_running():
            return False
        self._write_files()
        # Its socket is for this user alone; munged wants it open for all unless it is forced.
        self._daemon(
            "munged", "--force",
            f"--key-file={self.folder}/munge.key", f"--socket={self.folder}/munge.sock",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={self.folder}/munged.seed",
        )  # fmt: skip
        self.start_controller()
        for node in PARTITIONS.values():
            self._daemon("slurmd", "-N", node)
        self.wait_until_idle()
        return True

    def stop(self) -> None:
        """End all jobs and daemons; a temporary folder is removed."""
        # The controller first: nothing new is started while jobs are killed.
        self._end("slurmctld")
        self._kill_jobs()
        for node in PARTITIONS.values():
            self._end(f"slurmd-{node}")
        self._kill_jobs()
        self._end("munged")
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def node_down(self, name: str, *, reason: str = "set down by a test") -> None:
        """Set a node down, as an administrator would; its jobs end with NODE_FAIL."""
        self.run("scontrol", "update", f"nodename={name}", "state=down", f"reason={reason}")

    def node_up(self, name: str) -> None:
        """Let a node serve again that was set down."""
        if self.node_state(name).startswith(("down", "drain")):
            self.run("scontrol", "update", f"nodename={name}", "state=resume")

    def node_state(self, name: str) -> str:
        """Return Slurm's word for the state of a node: idle, mixed, allocated or down."""
        return self.run("sinfo", "-h", "-n", name, "-o", "%T").strip()

    def stop_controller(self) -> None:
        """End ``slurmctld`` alone; jobs go on, but nobody answers for them."""
        self._end("slurmctld")

    def start_controller(self) -> None:
        """Start ``slurmctld`` and wait until it answers."""
        self._daemon("slurmctld")
        self._wait(lambda: self.run("sinfo", "-h"), "slurmctld does not answer")

    def restart_controller(self) -> None:
        """Stop and start ``slurmctld``, and wait until it has heard of its nodes again."""
        self.stop_controller()
        self.start_controller()
        self._wait(
            lambda: "unk" not in self.run("sinfo", "-h", "-o", "%t"), "nodes are not heard of"
        )

    def wait_until_idle(self) -> None:
        """Wait until both nodes are up and without jobs."""
        self._wait(
            lambda: (
                self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()
                == sorted(PARTITIONS.values())
            ),
            "the nodes do not become idle",
        )

    def run(self, *command: str) -> str:
        """Run one of Slurm's programs and return what it prints.

        Parameters
        ----------
        command
            Program and arguments.
        """
        return subprocess.run(
            command,
            env=self._environ(),
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        ).stdout

    # Daemons

    def _write_files(self) -> None:
        import pwd

        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in ("state", "log", *(f"spool/{node}" for node in PARTITIONS.values())):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        if not (self.folder / "munge.key").exists():
            write_private(self.folder / "munge.key", secrets.token_hex(512))
        (self.folder / "gres.conf").write_text(_GRES, encoding="utf-8")
        text = _CONF.format(
            folder=self.folder,
            user=pwd.getpwuid(os.getuid()).pw_name,
            cpus=self.cpus,
            memory_MiB=self.memory_MiB,
            memory_per_cpu_MiB=self.memory_MiB // self.cpus,
            controller_port=free_port(),
            cpu_port=free_port(),
            gpu_port=free_port(),
        )
        self.conf.write_text(text, encoding="utf-8")

    def _daemon(self, name: str, *arguments: str) -> None:
        """Start a daemon; it goes to the background by itself."""
        program = _find_program(name)
        done = subprocess.run(
            [program or name, *arguments],
            env=self._environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        if done.returncode:
            raise ConfigurationError(
                f"{name} did not start: {done.stderr.strip() or done.returncode}",
                where=str(self.folder / "log"),
            )

    def _end(self, name: str) -> None:
        """End a daemon and wait until it is gone; SIGKILL for one that hangs."""
        process = self._process(name)
        if process is None:
            return
        process.terminate()
        deadline = time.monotonic() + HANGS_S
        # Not process.wait(): somebody else's child stays a zombie until that one looks.
        while self._process(name) is not None:
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(0.01)

    def _process(self, name: str) -> psutil.Process | None:
        """Return the living daemon of this folder that wrote a pid file."""
        import psutil

        try:
            process = psutil.Process(int((self.folder / f"{name}.pid").read_text()))
            ours = process.name().startswith(name.partition("-")[0])
            alive = process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None
        return process if ours and alive else None

    def _kill_jobs(self) -> None:
        """Kill what runs in jobs: each has a slurmstepd, which works in our folder."""
        import psutil

        for step in psutil.process_iter(["name", "cwd"]):
            if step.info["name"] != "slurmstepd" or step.info["cwd"] != str(self.folder / "log"):
                continue
            children = []
            with suppress(psutil.NoSuchProcess):
                children = step.children(recursive=True)
            for process in (*children, step):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def _wait(self, reached: Callable[[], object], complaint: str) -> None:
        """Wait for a condition; a controller that does not answer yet has not reached it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(subprocess.SubprocessError):
                if reached():
                    return
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"The local Slurm is in trouble: {complaint}.", where=str(self.folder / "log")
                )
            time.sleep(0.1)

    def _environ(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


def missing_programs() -> list[str]:
    """Return which of Slurm's and munge's programs are not installed."""
    return [name for name in PROGRAMS if _find_program(name) is None]


def _find_program(name: str) -> str | None:
    """Return a program from the PATH, or from where daemons are installed."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def main(arguments: Sequence[str] | None = None) -> int:
    """Start, stop or show a cluster that outlives this program, or run a command with one.

    Parameters
    ----------
    arguments
        Command line, without the program.
    """
    import argparse

    parser = argparse.ArgumentParser(prog="python -m otf_workflows.testing.slurm")
    parser.add_argument("action", choices=["up", "down", "status", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpus", type=int, default=2, help="CPUs of each node")
    parser.add_argument("--memory-MiB", type=int, default=8000, help="memory of each node")
    parser.add_argument("command", nargs="*", help="after --, for 'run'")
    options = parser.parse_args(arguments)
    slurm = LocalSlurm(options.folder, cpus=options.cpus, memory_MiB=options.memory_MiB)
    try:
        if options.action == "run":
            return _run(slurm, options.command)
        if options.action == "up":
            slurm.start()
        elif options.action == "down":
            slurm.stop()
            return 0
    except OtfError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if not slurm.is_running():
        sys.stderr.write("The cluster is down.\n")
        return 1
    sys.stdout.write(slurm.run("sinfo", "-o", "%P %N %T %c %m %G"))
    return 0


def _run(slurm: LocalSlurm, command: Sequence[str]) -> int:
    """Run a command with the cluster, hand SIGTERM on to it, and return its exit status."""
    with slurm:
        process = subprocess.Popen(command, env={**os.environ, **slurm.environment})
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda got, _: process.send_signal(got))
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
