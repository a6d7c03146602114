"""Our own MongoDB server for one user on one machine: a real ``mongod``, nothing to set up.

It listens on the loopback interface only, wants a password, keeps everything in the state folder
(mode 0700) and leaves no socket in ``/tmp``. Passwords are made at the first start, through
MongoDB's localhost exception, while the server can be reached only through a socket in a folder
that nobody else may enter. Afterwards that exception is switched off.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from otf_workflows.connection import Address
from otf_workflows.engine.host import (
    accepts,
    find_binary,
    free_port,
    is_free,
    larger_than,
    listens,
    look_for_mongod,
    text_from,
    write_private,
)
from otf_workflows.engine.mongod_users import direct_client, set_user
from otf_workflows.errors import ConfigurationError, DatabaseError
from otf_workflows.settings import private_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psutil
    from pymongo import MongoClient

ADMIN = "otf-admin"
USER = "otf"
START_TIMEOUT_S = 60.0
DYING_S = 5.0
STOP_TIMEOUT_S = 30.0
CACHE_GB = 0.25
MIN_FREE_BYTES = 300 * 1024**2
"""Least free disk to start with: mongod aborts, sometimes unreadably, when it runs out."""
MAX_SOCKET_PATH = 100
"""A little less than the 108 bytes that Linux allows for the path of a socket."""


@dataclass(frozen=True)
class MongodStatus:
    """What is known of the embedded server.

    Attributes
    ----------
    running
        Whether its process lives.
    pid, port
        Process id and port; the port is remembered while it is stopped.
    binary
        Program file, if one is found.
    folder
        Folder of data, log and passwords.
    """

    running: bool
    pid: int | None
    port: int | None
    binary: Path | None
    folder: Path


class EmbeddedMongod:
    """One embedded server; any number of these objects may speak of the same one.

    ``with EmbeddedMongod(folder):`` starts it, and stops it at the end if it was not running.

    Parameters
    ----------
    state_dir
        State folder of the site, mode 0700.
    database
        Database that our user may read and write.
    """

    def __init__(self, state_dir: Path, *, database: str = "otf") -> None:
        self.folder = Path(state_dir) / "mongod"
        self.database = database
        self._ours = False
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def log(self) -> Path:
        """Log file of the server."""
        return self.folder / "mongod.log"

    def __enter__(self) -> Self:
        """Start the server if it does not run."""
        self._ours = self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server if this block started it."""
        if self._ours:
            self.stop()
            self._ours = False

    def address(self) -> Address:
        """Return where the server is (or was last), and our password.

        Raises
        ------
        DatabaseError
            If it was never started here, or runs on another machine.
        """
        note = self._note()
        if "port" not in note:
            raise DatabaseError(
                "The embedded database has not been started.", where=str(self.folder), hint="otf up"
            )
        self._refuse_other_host(note)
        return Address(
            host="127.0.0.1",
            port=note["port"],
            name=self.database,
            username=USER,
            password=self._password(USER),
            auth_source="admin",
            embedded=True,
        )

    def is_running(self) -> bool:
        """Tell whether the server's process lives."""
        return self._find() is not None

    def status(self) -> MongodStatus:
        """Return whether the server runs, and where; changes nothing."""
        process = self._find()
        note = self._note()
        return MongodStatus(
            running=process is not None,
            pid=process.pid if process else None,
            port=note.get("port"),
            binary=look_for_mongod(),
            folder=self.folder,
        )

    def start(self) -> bool:
        """Start the server and wait until it answers.

        Returns
        -------
        bool
            False if it was running already.

        Raises
        ------
        ConfigurationError
            If there is no ``mongod``, the disk is full, or the server does not come up.
        DatabaseError
            If the server of this folder runs on another machine.
        """
        with self._lock():
            self._refuse_other_host(self._note())
            if self._find() is not None and self._logs_in():
                self._let_into_database()
                return False
            binary = find_binary()
            data = private_folder(self.folder / "data")
            self._refuse_full_disk()
            if not self._note().get("users_made"):
                self._first_start(binary, data)
            self._start_on_free_port(binary, data)
            if not self._logs_in():
                raise self._explain_end()
            self._let_into_database()
            return True

    def stop(self) -> bool:
        """Stop the server and wait until its process is gone.

        Returns
        -------
        bool
            False if it was not running.
        """
        with self._lock():
            self._refuse_other_host(self._note())
            process = self._find()
            if process is None:
                return False
            self._end(process)
            self._write_note(pid=None, host=None)
            return True

    def admin_client(self) -> MongoClient[dict[str, Any]]:
        """Return a client with all rights on the running server, for tests and repairs."""
        where = self.address()
        login = {"username": ADMIN, "password": self._password(ADMIN)}
        return direct_client(where.host, port=where.port, **login, authSource="admin")

    def make_user(self, user: str, *, database: str) -> str:
        """Make one more user, who may read and write one database; return the password.

        Parameters
        ----------
        user
            Name of the user.
        database
            The only database this user may read and write.
        """
        password = secrets.token_urlsafe(32)
        with self.admin_client() as client:
            set_user(client, user, password, database=database)
        return password

    # Starting

    def _first_start(self, binary: Path, data: Path) -> None:
        """Make both users while nobody else can connect."""
        from pymongo.errors import OperationFailure

        with self._socket_folder() as folder:
            path = folder / "boot.sock"
            process = self._launch(
                binary, data, ["--bind_ip", str(path), "--unixSocketPrefix", str(folder)]
            )
            client = direct_client(quote(str(path), safe=""))
            try:
                self._wait_until_up(process, partial(accepts, path))
                admin: dict[str, Any] = {"pwd": self._password(ADMIN), "roles": ["root"]}
                try:
                    client.admin.command("createUser", ADMIN, **admin)
                except OperationFailure as error:
                    # A first start that was killed half-way: the user is there already.
                    if error.code not in {13, 51003}:  # Unauthorized, user exists
                        raise
                login = {"username": ADMIN, "password": self._password(ADMIN)}
                own = direct_client(quote(str(path), safe=""), **login, authSource="admin")
                with own:
                    set_user(own, USER, self._password(USER), database=self.database)
            finally:
                client.close()
                self._end_child(process)
        self._write_note(users_made=True, databases=[self.database])

    def _let_into_database(self) -> None:
        """Give our user rights on one more database, if the site now names another one."""
        known = self._note().get("databases", [])
        if self.database in known:
            return
        with self.admin_client() as client:
            role = {"role": "readWrite", "db": self.database}
            client.admin.command("grantRolesToUser", USER, roles=[role])
        self._write_note(databases=[*known, self.database])

    def _start_on_free_port(self, binary: Path, data: Path) -> None:
        """Start on the remembered port if it is free, else on another one."""
        note = self._note()
        port = note.get("port")
        # A server that was killed holds its port until the kernel has cleared it away; clients
        # that know the port find the new server there.
        deadline = time.monotonic() + (DYING_S if note.get("pid") else 0.0)
        while port is not None and not is_free(port) and time.monotonic() < deadline:
            time.sleep(0.05)
        for _ in range(5):
            if port is None or not is_free(port):
                port = free_port()
            process = self._launch(
                binary,
                data,
                ["--bind_ip", "127.0.0.1", "--port", str(port), "--nounixsocket",
                 "--setParameter", "enableLocalhostAuthBypass=false"],
            )  # fmt: skip
            self._write_note(pid=process.pid, host=socket.gethostname(), port=port)
            try:
                self._wait_until_up(process, partial(listens, process.pid, port))
            except _PortTaken:
                port = None
                continue
            except BaseException:
                self._end_child(process)
                raise
            self._process = process
            return
        raise ConfigurationError("No free port was found for mongod.", where=str(self.log))

    def _launch(self, binary: Path, data: Path, options: list[str]) -> subprocess.Popen[bytes]:
        if larger_than(self.log, 50 * 1024**2):
            self.log.replace(self.log.with_suffix(".log.old"))
        command = [
            str(binary), "--dbpath", str(data), "--auth", "--quiet",
            "--logpath", str(self.log), "--logappend",
            "--wiredTigerCacheSizeGB", str(CACHE_GB),
            # The journal is not laid out in advance: 17 MB on disk when empty, not 300 MB.
            "--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=16MB)",
            "--setParameter", "diagnosticDataCollectionEnabled=false",
            *options,
        ]  # fmt: skip
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with (self.folder / "mongod.out").open("wb") as out:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
            )

    def _wait_until_up(self, process: subprocess.Popen[bytes], is_up: Callable[[], bool]) -> None:
        """Wait until the server listens, or explain why it does not.

        The process is looked at, not the port: somebody else's server could answer there.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise self._explain_end()
            if is_up():
                return
            time.sleep(0.02)
        self._end_child(process)
        raise ConfigurationError(
            f"mongod did not answer within {START_TIMEOUT_S:.0f} s.",
            where=str(self.log),
            hint=f"tail {self.log}",
        )

    def _logs_in(self) -> bool:
        """Wait until our user can log in; return False if the server ends instead."""
        from pymongo.errors import OperationFailure, PyMongoError

        where = self.address()
        client = direct_client(where.host, port=where.port, **where.options)
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while True:
                try:
                    client[self.database].command("ping")
                except OperationFailure as error:
                    raise DatabaseError(
                        "The embedded database refuses its own password.",
                        where=str(self.folder),
                        hint=f"restore {self._password_file(USER)}, or move the folder away",
                    ) from error
                except PyMongoError as error:
                    if self._find() is None:
                        return False
                    if time.monotonic() > deadline:
                        raise DatabaseError(
                            "The embedded database does not answer.", where=str(self.log)
                        ) from error
                    time.sleep(0.1)
                else:
                    return True
        finally:
            client.close()

    def _explain_end(self) -> Exception:
        """Return the error that fits what the server said since it was started."""
        tail = text_from(self.log, self._log_start) + text_from(self.folder / "mongod.out", 0)
        if "Address already in use" in tail:
            return _PortTaken()
        if "No space left on device" in tail or "ENOSPC" in tail:
            return self._disk_full()
        if "DBPathInUse" in tail:
            what = "Another mongod uses the same data folder."
        else:
            what = "mongod ended as soon as it was started."
        return ConfigurationError(what, where=str(self.log), hint=f"tail {self.log}")

    def _refuse_full_disk(self) -> None:
        if shutil.disk_usage(self.folder).free < MIN_FREE_BYTES:
            raise self._disk_full()

    def _disk_full(self) -> ConfigurationError:
        free_MB = shutil.disk_usage(self.folder).free // 1024**2
        return ConfigurationError(
            f"The disk is full: {free_MB} MB are free, mongod wants "
            f"{MIN_FREE_BYTES // 1024**2} MB to start.",
            where=str(self.folder),
            hint="free some space, or choose another disk with OTF_STATE_DIR=/some/folder",
        )

    # Stopping and finding

    def _find(self) -> psutil.Process | None:
        """Return the process that serves our data folder, if it lives on this machine."""
        import psutil

        pid = self._note().get("pid")
        if not pid:
            return None
        try:
            process = psutil.Process(pid)
            ours = str(self.folder / "data") in process.cmdline()
            alive = process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        return process if ours and alive else None

    def _end(self, process: psutil.Process) -> None:
        """End a server in its clean way; it is a database, so it is given time."""
        import psutil

        process.terminate()
        if self._process is not None and self._process.pid == process.pid:
            self._end_child(self._process)
            return
        try:
            process.wait(STOP_TIMEOUT_S)
        except psutil.TimeoutExpired:
            process.kill()  # the journal brings everything back at the next start
            process.wait(STOP_TIMEOUT_S)

    def _end_child(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # Files

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Let one process at a time start or stop the server."""
        private_folder(self.folder)
        with (self.folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _socket_folder(self) -> Iterator[Path]:
        """Yield a folder of ours with a path short enough for a socket."""
        fits = len(str(self.folder / "boot-xxxxxxxx" / "boot.sock")) <= MAX_SOCKET_PATH
        parent = self.folder if fits else None
        folder = Path(tempfile.mkdtemp(prefix="boot-", dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _note(self) -> dict[str, Any]:
        """Return what the last start wrote down."""
        try:
            note = json.loads((self.folder / "mongod.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _write_note(self, **changes: Any) -> None:
        """Write down changes, so that a crash leaves either the old or the new note."""
        write_private(self.folder / "mongod.json", json.dumps({**self._note(), **changes}))

    def _refuse_other_host(self, note: dict[str, Any]) -> None:
        host = note.get("host")
        if host and host != socket.gethostname():
            raise DatabaseError(
                f"The embedded database of this state folder runs on {host}.",
                where=str(self.folder),
                hint=f"log in to {host}, or use another folder with OTF_STATE_DIR=/some/folder",
            )

    def _password_file(self, user: str) -> Path:
        return self.folder / f"{user}.password"

    def _password(self, user: str) -> str:
        """Return the password of a user, made when it is first needed."""
        file = self._password_file(user)
        if not file.exists():
            write_private(file, secrets.token_urlsafe(32))
        return file.read_text(encoding="utf-8")


class _PortTaken(Exception):  # noqa: N818 - it never leaves this module
    """Somebody else got the port first."""
