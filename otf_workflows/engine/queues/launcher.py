"""Keeps batch queues filled with workers, and finds out what became of each batch job.

FireWorks' own ``qlaunch`` submits and forgets. Here every look compares three books: the batch
system's list, our ``otf_queue_jobs`` and the launch pad. A batch job that vanished is noticed at
the next look, its cause is asked for and written down, and its job runs again or fails by policy
(:mod:`otf_workflows.engine.queues.retries`). Nothing that matters is kept in memory: a launcher
may be killed at any moment, and the next one goes on from the three books.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from otf_workflows.connection import translated
from otf_workflows.engine.queues.backoff import BackOff
from otf_workflows.engine.queues.incidents import Incidents
from otf_workflows.engine.queues.jobs import QueueJobs, home_id
from otf_workflows.engine.queues.judge import Judge
from otf_workflows.engine.queues.label_costs import LabelCosts
from otf_workflows.engine.queues.submitter import Submitter
from otf_workflows.engine.queues.system import QueueSystem, QueueUnavailable
from otf_workflows.errors import OtfError
from otf_workflows.store import Store

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from otf_workflows.engine.fireworks_engine import FireWorksEngine
    from otf_workflows.engine.queues.system import QueueJob
    from otf_workflows.settings import Site
    from otf_workflows.types import QueueKind, Role

logger = logging.getLogger("otf_workflows.engine.queues.launcher")

LOOK_S = 10.0
"""The batch system is asked for its list so often (s)."""
FILL_S = 2.0
"""Our own books are looked at so often for jobs that want a place in a queue (s)."""
LONGEST_PAUSE_S = 60.0
"""Whatever fails, the queues are looked at again after so long (s)."""


class Launcher:
    """Looks after the batch jobs of all roles that a site sends to a queue.

    Parameters
    ----------
    site
        The site; its ``queues`` name the roles.
    engine
        FireWorks on the site's database.
    systems
        Batch system of each role; made from the site's sections if not given.
    """

    def __init__(
        self,
        site: Site,
        engine: FireWorksEngine,
        *,
        systems: Mapping[Role, QueueSystem] | None = None,
    ) -> None:
        self.site = site
        self.home = home_id(site.resolved_state_dir)
        self._jobs = QueueJobs(engine.database)
        self._jobs.ensure_indexes()
        self._systems = systems or {role: QueueSystem(queue) for role, queue in site.queues.items()}
        incidents = Incidents(engine.launchpad, engine.database, state_dir=site.resolved_state_dir)
        costs = LabelCosts(Store(engine.database), site)
        self._judge = Judge(self.home, engine, jobs=self._jobs, incidents=incidents)
        self._submitters = {
            role: Submitter(
                self.home,
                role,
                system,
                engine=engine,
                jobs=self._jobs,
                incidents=incidents,
                costs=costs,
            )
            for role, system in self._systems.items()
        }
        self._pauses = {role: BackOff(LOOK_S, longest_s=LONGEST_PAUSE_S) for role in site.queues}
        self._is_second = False

    def keep(self, stopping: threading.Event) -> None:
        """Look again and again until told to stop; whatever fails is tried again later.

        Parameters
        ----------
        stopping
            Set by whoever wants this to end.
        """
        trouble = BackOff(1.0, longest_s=LONGEST_PAUSE_S)
        looked = -LOOK_S
        while not stopping.is_set():
            pause_s, judge = FILL_S, time.monotonic() - looked >= LOOK_S
            try:
                for sentence in self.look(judge=judge):
                    logger.info(sentence)
                trouble.worked()
                looked = time.monotonic() if judge else looked
            except OtfError as error:
                pause_s = trouble.failed()
                logger.warning("%s Next look at the queues in %.0f s.", error.what, pause_s)
            except Exception:  # whoever looks after the others must not die of one of them
                pause_s = trouble.failed()
                logger.exception("The launcher met an unexpected error and goes on.")
            stopping.wait(pause_s)

    def look(self, *, judge: bool = True) -> list[str]:
        """Compare the books once, put right what is wrong, and fill the queues.

        Parameters
        ----------
        judge
            Without it the batch system is not asked for its list; queues are filled all the same.

        Returns
        -------
        list of str
            What was found and done, in sentences; empty if all is well.

        Raises
        ------
        DatabaseError
            If the database does not answer.
        """
        with translated(self.site), self._jobs.lease(self.home) as mine:
            if not mine:
                return self._stand_by()
            self._is_second = False
            sentences: list[str] = []
            lists: dict[QueueKind, list[QueueJob]] = {}
            for role in self.site.queues:
                if self._pauses[role].waiting:
                    continue
                if judge:
                    sentences += self._find_out(role, lists)
                if not self._pauses[role].waiting:
                    sentences += self._submitters[role].fill()
            if judge:
                sentences += self._judge.release_stale_reservations()
            return sentences

    def close(self) -> None:
        """Let another launcher begin at once; batch jobs stay in the queue and go on."""
        with translated(self.site):
            self._jobs.release(self.home)

    def withdraw_all(self, why: str) -> int:
        """Cancel all our batch jobs and put their jobs back; return how many there were.

        Parameters
        ----------
        why
            Written into their documents.
        """
        n_withdrawn = 0
        with translated(self.site):
            for role, system in self._systems.items():
                batches = self._jobs.open(self.home, role)
                for batch in batches:
                    self._jobs.change(batch.token, withdrawn=why)
                system.cancel([batch.job_id for batch in batches if batch.job_id])
                n_withdrawn += len(batches)
        return n_withdrawn

    def _find_out(self, role: Role, lists: dict[QueueKind, list[QueueJob]]) -> list[str]:
        """Find out what became of the batch jobs of a role; each system is asked for one list.

        If it does not answer, nothing is known, nothing is judged, and nothing is submitted
        blindly until the pause is over.
        """
        pause, kind = self._pauses[role], self.site.queues[role].kind
        try:
            if kind not in lists:
                lists[kind] = self._systems[role].jobs()
            sentences = self._judge.judge(role, self._systems[role], lists[kind])
        except QueueUnavailable as error:
            return [f"{error.what} Asked again in {pause.failed():.0f} s."]
        pause.worked()
        return sentences

    def _stand_by(self) -> list[str]:
        """Say, once, that another launcher is at work."""
        if self._is_second:
            return []
        self._is_second = True
        return ["Another launcher looks after these queues; this one stands by."]
