"""The site file: machines, programs and the database, and nothing about physics.

Without any file a site is this one machine: an embedded ``mongod`` and local workers.
"""

from __future__ import annotations

import difflib
import os
import stat
import typing
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from otf_workflows.errors import ConfigurationError
from otf_workflows.labelers.base import Resources
from otf_workflows.types import Device, EngineKind, Packing, QueueKind, Role

APP_NAME = "otf-workflows"
SITE_FILE_VARIABLE = "OTF_SITE_FILE"
STATE_DIR_VARIABLE = "OTF_STATE_DIR"
DIRECTIVES = {QueueKind.SLURM: "#SBATCH", QueueKind.PBS: "#PBS", QueueKind.SGE: "#$"}
"""What a line for the batch system begins with in a job script."""


class Section(BaseModel):
    """Base of all sections: no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(Section):
    """Where MongoDB is."""

    mode: Literal["embedded", "server"] = Field(
        "embedded", description="'embedded' starts our own mongod; 'server' uses the one named."
    )
    host: str = Field("127.0.0.1", description="Host name of the server.")
    port: int = Field(27017, ge=1, le=65535, description="Port of the server.")
    name: str = Field("otf", description="Database; jobflow's and FireWorks' live in it too.")
    username: str | None = Field(None, description="User with readWrite on that database.")
    password_file: Path | None = Field(
        None, description="File (mode 0600) with the password; never put it in this file."
    )
    auth_source: str | None = Field(None, description="Database that knows the user.")
    tls: bool = Field(False, description="Encrypt the connection.")
    tls_ca_file: Path | None = Field(None, description="Certificate authority of the server.")


class Worker(Section):
    """The local workers of one role."""

    count: int = Field(1, ge=0, description="Processes at once.")
    threads: int = Field(1, ge=1, description="Threads of each, for torch and BLAS.")


class Queue(Section):
    """The batch queue of one role, and what one job of ours asks it for."""

    kind: QueueKind = Field(QueueKind.SLURM, description="Batch system.")
    partition: str | None = Field(None, description="Partition or queue; the default one if none.")
    account: str | None = Field(None, description="Account or project that pays.")
    qos: str | None = Field(None, description="Quality of service.")
    nodes: int = Field(1, ge=1, description="Nodes of one job.")
    ranks: int = Field(1, ge=1, description="MPI ranks of one job, on all its nodes together.")
    cores_per_rank: int = Field(1, ge=1, description="Cores (threads) of each rank.")
    gpus: int = Field(0, ge=0, description="GPUs per node.")
    memory_MiB: int | None = Field(
        None, ge=1, description="Memory per node (MiB); the queue's default if none."
    )
    walltime_s: int = Field(3600, ge=60, description="Time of one job (s).")
    max_walltime_s: int | None = Field(
        None, ge=60, description="What a job may get that ran out of time (s); twice, if none."
    )
    max_memory_MiB: int | None = Field(
        None, ge=1, description="What a job may get that ran out of memory; twice, if none."
    )
    environment: list[str] = Field(
        default_factory=list,
        description="Shell lines before the worker starts, e.g. 'module load qe/7.2'.",
    )
    directives: list[str] = Field(
        default_factory=list, description="Further '#SBATCH …' ('#PBS …', '#$ …') lines."
    )
    max_jobs: int = Field(4, ge=1, description="Jobs of this role in the queue at once.")
    packing: Packing = Field(
        Packing.AUTO, description="One label per batch job, or many ('pilot'); 'auto' decides."
    )
    side_by_side: int = Field(
        1, ge=1, description="Labels at once inside one batch job; they share its ranks."
    )
    max_idle_s: float = Field(
        60.0, ge=0, description="A batch job without work ends after so long (s)."
    )
    python: str | None = Field(
        None, description="Python on the compute nodes, if it is not the one that runs 'otf'."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Queue:
        """Refuse what would only fail when a job is submitted."""
        mark = DIRECTIVES[self.kind]
        for line in self.directives:
            if not line.startswith(mark):
                msg = f"directives of {self.kind} begin with '{mark}', not '{line}'"
                raise ValueError(msg)
        named = (self.partition, self.account, self.qos)
        if any(len(text.split()) != 1 for text in named if text is not None):
            msg = "partition, account and qos are single words"
            raise ValueError(msg)
        if any("\n" in line for line in (*self.environment, *self.directives)):
            msg = "environment and directives are lists of single lines"
            raise ValueError(msg)
        if self.side_by_side > self.ranks:
            msg = f"side_by_side is {self.side_by_side}, but there are only {self.ranks} ranks"
            raise ValueError(msg)
        return self


class RemoteSettings(Section):
    """How jobflow-remote reaches compute nodes that do not see the database."""

    host: str | None = Field(
        None, description="Login node to submit from, over SSH; this machine itself if none."
    )
    user: str | None = Field(None, description="User on that host, if it is another one.")
    port: int | None = Field(None, ge=1, le=65535, description="Its SSH port, if it is not 22.")
    key_file: Path | None = Field(None, description="Private key for that host.")
    work_dir: Path | None = Field(
        None,
        description="Folder of the jobs, seen by the compute nodes; default: 'jobs' in the state "
        "folder. Needed with host.",
    )
    site_file: Path | None = Field(
        None,
        description="Site file on that host, for codes and state folder. Needed with host.",
    )
    poll_s: float = Field(
        10.0, gt=0, description="Pause between two looks at the queue and the jobs (s)."
    )

    @model_validator(mode="after")
    def _whole(self) -> RemoteSettings:
        """Refuse a host whose folders nobody named."""
        needed = {"work_dir": self.work_dir, "site_file": self.site_file}
        missing = [name for name, value in needed.items() if value is None]
        if self.host and missing:
            msg = f"a host needs {' and '.join(missing)} on that host"
            raise ValueError(msg)
        if any(path is not None and not path.is_absolute() for path in needed.values()):
            msg = "work_dir and site_file are absolute paths"
            raise ValueError(msg)
        return self


class Site(Section):
    """One site."""

    state_dir: Path | None = Field(
        None, description="Our files (mode 0700); default: $XDG_STATE_HOME/otf-workflows."
    )
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    workers: dict[Role, Worker] = Field(
        default_factory=lambda: {
            Role.CONTROL: Worker(),
            Role.MD: Worker(count=2),
            Role.DFT: Worker(count=2),
            # One thread: the same bits on every machine, and no two threads waiting for each other
            # where cores are shared.
            Role.TRAIN: Worker(),
        },
        description="Local workers per role: control, md, dft, train.",
    )
    queues: dict[Role, Queue] = Field(
        default_factory=dict,
        description="Batch queue per role; roles not named here are local workers.",
    )
    device: Device = Field(
        Device.AUTO,
        description="Where potentials run: 'auto' is a GPU on machines where PyTorch sees one, "
        "else the CPU. 'cuda' fails where there is none.",
    )
    engine: EngineKind = Field(
        EngineKind.FIREWORKS,
        description="What runs the jobs; 'jobflow-remote' where compute nodes cannot reach the "
        "database.",
    )
    remote: RemoteSettings = Field(
        default_factory=RemoteSettings, description="For the engine jobflow-remote only."
    )
    codes: dict[str, Resources] = Field(
        default_factory=dict,
        description="Command and resources per DFT code; CODE@NAME for `--worker NAME` of a rerun.",
    )

    password: SecretStr | None = Field(None, exclude=True, description="Filled in from its file.")
    source: Path | None = Field(
        None, exclude=True, description="File this was read from; none for the built-in site."
    )

    def resources(self, code: str, worker: str | None = None) -> Resources:
        """Return command and resources of a DFT code, or of a named variant of it.

        Raises
        ------
        ConfigurationError
            If a variant is asked for that is not in the site file.
        """
        if worker is None:
            return self.codes.get(code, Resources())
        name = f"{code}@{worker}"
        if name not in self.codes:
            known = ", ".join(key for key in self.codes if key.startswith(f"{code}@")) or "none"
            raise ConfigurationError(
                f"the site file has no '{name}' under codes (there are: {known})",
                where=str(self.source) if self.source else None,
                hint=f"add it: codes: {{{name}: {{command: ..., cores: ..., walltime_s: ...}}}}",
            )
        return self.codes[name]

    @property
    def resolved_state_dir(self) -> Path:
        """Our folder on this machine, made (mode 0700) if it is not there.

        ``$OTF_STATE_DIR`` comes before ``state_dir``, which comes before the user's state folder
        of the XDG convention; two users never share one.

        Raises
        ------
        ConfigurationError
            If the folder cannot be made, belongs to somebody else or is open to others.
        """
        from platformdirs import user_state_path

        named = os.environ.get(STATE_DIR_VARIABLE)
        path = Path(named) if named else self.state_dir or user_state_path(APP_NAME)
        return private_folder(path.expanduser().absolute())


def private_folder(path: Path) -> Path:
    """Make a folder for this user alone, or check that it is one.

    Parameters
    ----------
    path
        The folder; parents are made as well.

    Raises
    ------
    ConfigurationError
        If it cannot be made, belongs to somebody else, or others may enter it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.stat()
    except OSError as error:
        raise ConfigurationError(
            f"The state folder cannot be made: {error.strerror}.",
            where=str(path),
            hint=f"choose another one with {STATE_DIR_VARIABLE}=/some/folder",
        ) from error
    if info.st_uid != os.getuid():
        raise ConfigurationError(
            "The state folder belongs to another user.",
            where=str(path),
            hint=f"choose your own with {STATE_DIR_VARIABLE}=/some/folder",
        )
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise ConfigurationError(
            "The state folder can be opened by other users.",
            where=str(path),
            hint=f"chmod 700 {path}",
        )
    return path


def load_site(path: Path | None = None) -> Site:
    """Return the site: the first file that is found, or this machine as it is.

    The order is ``path``, ``$OTF_SITE_FILE``, ``./site.yaml``, then ``site.yaml`` in the user's
    configuration folder (``$XDG_CONFIG_HOME/otf-workflows``). ``Site.source`` tells which one won.

    Parameters
    ----------
    path
        Site file named by the user.

    Raises
    ------
    ConfigurationError
        If a file was named but is not there, or anything in it is wrong.
    """
    file = _find(path)
    if file is None:
        return Site()
    data = _read_yaml(file)
    try:
        site = Site.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError(
            "The site file is not right: " + "; ".join(_sentences(error)),
            where=str(file),
            hint="correct the file; 'otf init' writes a commented one",
        ) from error
    changes: dict[str, Any] = {"source": file}
    if site.state_dir is not None:  # relative to the site file, as all of its paths
        changes["state_dir"] = file.parent / site.state_dir.expanduser()
    named = site.database.password_file
    if named is not None:
        password_file = file.parent / named.expanduser()
        changes["password"] = SecretStr(_read_password(password_file))
        changes["database"] = site.database.model_copy(update={"password_file": password_file})
    elif site.database.mode == "server" and site.database.username is not None:
        raise ConfigurationError(
            "The database has a username, but no password_file.",
            where=str(file),
            hint="put the password into a file (chmod 600) and name it as database.password_file",
        )
    return site.model_copy(update=changes)


def site_candidates() -> list[tuple[str, Path]]:
    """Return where a site file is looked for without ``--site``, first to last, with the reason."""
    from platformdirs import user_config_path

    named = os.environ.get(SITE_FILE_VARIABLE)
    first = [(f"${SITE_FILE_VARIABLE}", Path(named).expanduser().absolute())] if named else []
    return [
        *first,
        ("this folder", Path("site.yaml").absolute()),
        ("your configuration folder", user_config_path(APP_NAME) / "site.yaml"),
    ]


def _find(path: Path | None) -> Path | None:
    """Return the site file to read; a named one must exist."""
    candidates = site_candidates()
    if path:
        candidates.insert(0, ("the command line", Path(path).expanduser().absolute()))
    for origin, file in candidates:
        if file.is_file():
            return file
        if origin in {"the command line", f"${SITE_FILE_VARIABLE}"}:
            raise ConfigurationError(
                f"The site file named by {origin} does not exist.",
                where=str(file),
                hint="'otf init' writes a commented one",
            )
    return None


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        data = deepcopy(_parsed(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"The site file cannot be read: {error}", where=str(file)
        ) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigurationError("The site file is not a table of 'key: value'.", where=str(file))
    hidden = sorted({"password", "source"} & set(data))
    if hidden:
        raise ConfigurationError(
            f"'{hidden[0]}' does not belong into a site file.",
            where=str(file),
            hint="name a file with the password (chmod 600) as database.password_file",
        )
    return data


@lru_cache(maxsize=4)
def _parsed(text: str) -> Any:
    """Return what a site file says; every job reads it anew, and it rarely changes."""
    import yaml

    return yaml.safe_load(text)


def _read_password(file: Path) -> str:
    """Return the password in ``file``, which must be readable by its owner only."""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The password file cannot be read: {error}", where=str(file)
        ) from error
    if mode & 0o077:
        raise ConfigurationError(
            "The password file can be read by other users.",
            where=str(file),
            hint=f"chmod 600 {file}",
        )
    if not text:
        raise ConfigurationError("The password file is empty.", where=str(file))
    return text


def _sentences(error: ValidationError) -> list[str]:
    """Return what is wrong, one short sentence for each field, with did-you-mean."""
    result = []
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _known_keys(item["loc"][:-1]))
            guess = f", did you mean '{near[0]}'?" if near else ""
            result.append(f"unknown key '{where}'{guess}")
        elif item["loc"][-1:] == ("[key]",):
            near = difflib.get_close_matches(str(item["loc"][-2]), list(Role))
            guess = f", did you mean '{near[0]}'?" if near else ""
            result.append(f"unknown role '{item['loc'][-2]}'{guess}")
        else:
            said = item["msg"].removeprefix("Value error, ")
            result.append(f"{where}: {said[:1].lower()}{said[1:]}")
    return result


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed at a place in the site file."""
    model: type[BaseModel] = Site
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:  # a key of a mapping, such as the role in workers.dft
            continue
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        model = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return [key for key in model.model_fields if key not in {"password", "source"}]
