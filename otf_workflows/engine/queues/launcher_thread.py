"""The launcher beside the other services: a thread of the supervisor."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from otf_workflows.connection import translated
from otf_workflows.errors import OtfError
from otf_workflows.types import Role

if TYPE_CHECKING:
    from otf_workflows.settings import Site

logger = logging.getLogger("otf_workflows.engine.queues.launcher")

RECONCILE_S = 5.0
"""How often campaigns are brought forward where no control worker does it (s)."""


class LauncherThread:
    """Runs a launcher until told to stop.

    A queue system that hangs must not keep the supervisor from its workers, hence the thread.

    Parameters
    ----------
    site
        The site.
    reconcile
        Whether to bring campaigns forward, if no control worker of this machine does: those in a
        queue come and go.
    """

    def __init__(self, site: Site, *, reconcile: bool = True) -> None:
        from otf_workflows.engine.fireworks_engine import FireWorksEngine
        from otf_workflows.engine.queues.launcher import Launcher

        self._engine = FireWorksEngine(site)
        self.launcher = Launcher(site, self._engine)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(
                target=self.launcher.keep, args=(self._stopping,), name="launcher", daemon=True
            )
        ]
        if reconcile and not has_local_control(site):
            self._threads.append(
                threading.Thread(target=self._reconcile, name="reconcile", daemon=True)
            )

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self, *, withdraw: bool = False) -> None:
        """End; batch jobs stay in the queue, unless their database goes away with us.

        Parameters
        ----------
        withdraw
            Cancel them, and put their jobs back.
        """
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        try:
            if withdraw and (n := self.launcher.withdraw_all("the services were stopped")):
                logger.info("%d batch jobs are cancelled: their database is stopped.", n)
            self.launcher.close()
        except OtfError as error:
            logger.warning("The launcher could not take its leave: %s", error.what)
        self._engine.close()

    def _reconcile(self) -> None:
        from otf_workflows.engine.worker import reconcile_campaigns

        while not self._stopping.wait(RECONCILE_S):
            try:
                with translated(self._engine.site):
                    for sentence in reconcile_campaigns(self._engine):
                        logger.info(sentence)
            except OtfError as error:
                logger.warning("Campaigns cannot go on: %s", error.what)
            except Exception:  # tried again in a moment; the log has the traceback
                logger.exception("Campaigns cannot go on for now.")


def has_local_control(site: Site) -> bool:
    """Tell whether a control worker of this machine brings campaigns forward."""
    worker = site.workers.get(Role.CONTROL)
    return Role.CONTROL not in site.queues and worker is not None and worker.count > 0
