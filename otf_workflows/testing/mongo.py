"""A real, private ``mongod`` for tests: one server, a fresh database for every test."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from otf_workflows.engine.mongod import EmbeddedMongod
from otf_workflows.settings import (
    SITE_FILE_VARIABLE,
    STATE_DIR_VARIABLE,
    DatabaseSettings,
    Site,
    Worker,
)
from otf_workflows.types import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count()


@contextmanager
def ephemeral_mongod() -> Iterator[EmbeddedMongod]:
    """Run a server in a folder of its own; both are gone at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="otf-test-"))
    try:
        with EmbeddedMongod(folder) as mongod:
            yield mongod
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fresh_site(mongod: EmbeddedMongod, folder: Path) -> Iterator[Site]:
    """Yield a site with its own empty database on a running server.

    The site is written to a file that ``$OTF_SITE_FILE`` names inside the block, so that jobs and
    workers find it as they would find a user's.

    Parameters
    ----------
    mongod
        A running server.
    folder
        Empty folder for the site file and the state folder.
    """
    import yaml

    from otf_workflows.settings import load_site

    server = mongod.address()
    name = f"otf_{os.getpid()}_{next(_numbers)}"
    password = mongod.make_user(name, database=name)
    password_file = folder / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password, encoding="utf-8")
    site = Site(
        state_dir=folder / "state",
        database=DatabaseSettings(
            mode="server",
            host=server.host,
            port=server.port,
            name=name,
            username=name,
            password_file=password_file,
            auth_source="admin",
        ),
        workers={role: Worker() for role in Role},
    )
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump(site.model_dump(mode="json")), encoding="utf-8")
    before = {key: os.environ.get(key) for key in (SITE_FILE_VARIABLE, STATE_DIR_VARIABLE)}
    os.environ[SITE_FILE_VARIABLE] = str(file)
    os.environ.pop(STATE_DIR_VARIABLE, None)
    try:
        yield load_site()
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})
        admin = mongod.admin_client()
        admin.drop_database(name)
        admin.close()
