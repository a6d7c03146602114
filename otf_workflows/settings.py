"""The site file: machines, programs and the database, and nothing about physics.

Without any file a site is this one machine: an embedded ``mongod`` and local workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from otf_workflows.labelers.base import Resources
from otf_workflows.types import Role


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
            Role.TRAIN: Worker(threads=2),
        },
        description="Local workers per role: control, md, dft, train.",
    )
    codes: dict[str, Resources] = Field(
        default_factory=dict, description="Command and resources per DFT code."
    )

    password: SecretStr | None = Field(None, exclude=True, description="Filled in from its file.")
