"""One round of everything that services do all the time; for cron, where nothing may stay up."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from otf_workflows.engine.queues.launcher_thread import has_local_control
from otf_workflows.errors import ConfigurationError
from otf_workflows.settings import STATE_DIR_VARIABLE
from otf_workflows.types import EngineKind, Role

if TYPE_CHECKING:
    from otf_workflows.settings import Site

CONTROL_S = 600.0
"""How long control jobs of one round may take (s); what is left waits for the next round."""


def one_round(site: Site) -> list[str]:
    """Repair, bring campaigns forward, run control jobs that are ready, look after the queues.

    Parameters
    ----------
    site
        The site; its database is a server, since an embedded one would end with this process.

    Returns
    -------
    list of str
        What was done, in sentences.

    Raises
    ------
    ConfigurationError
        If the database is embedded, or a role other than control has no queue.
    DatabaseError
        If the database does not answer.
    """
    from otf_workflows.engine.fireworks_engine import FireWorksEngine
    from otf_workflows.engine.queues.launcher import Launcher
    from otf_workflows.engine.worker import reconcile_campaigns

    _check(site)
    if site.engine is EngineKind.JOBFLOW_REMOTE:
        from otf_workflows.engine.remote.service import one_round as round_of_the_runner

        return round_of_the_runner(site)
    engine = FireWorksEngine(site)
    try:
        sentences = engine.recover() + reconcile_campaigns(engine)
        if has_local_control(site):
            _run_control_jobs(site)
            sentences += reconcile_campaigns(engine)
        launcher = Launcher(site, engine)
        sentences += launcher.look()
        launcher.close()
    finally:
        engine.close()
    return sentences


def _check(site: Site) -> None:
    where = str(site.source) if site.source else None
    if site.database.mode == "embedded":
        raise ConfigurationError(
            "'otf launch --once' needs a database that stays up.",
            where=where,
            hint="name a MongoDB server in the site file, or use 'otf launch' or 'otf up'",
        )
    alone = [r for r in Role if r is not Role.CONTROL and r not in site.queues]
    if alone:
        raise ConfigurationError(
            f"'otf launch --once' starts no local workers, but {', '.join(alone)} have no queue.",
            where=where,
            hint=f"add queues: {{{alone[0]}: {{partition: ...}}}}, or use 'otf launch'",
        )


def _run_control_jobs(site: Site) -> None:
    """Run the control jobs that are ready in a process of its own, which ends when none is left."""
    from otf_workflows.engine.supervisor import site_file

    command = [
        sys.executable, "-m", "otf_workflows.engine.worker",
        "--role", str(Role.CONTROL), "--site", str(site_file(site)), "--max-idle", "1",
    ]  # fmt: skip
    environment = {**os.environ, STATE_DIR_VARIABLE: str(site.resolved_state_dir)}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    try:
        process.wait(CONTROL_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
