"""What one invocation of ``otf`` works with; each part is made when a command asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import typer

    from otf_workflows.engine.base import Engine
    from otf_workflows.settings import Site
    from otf_workflows.store import Store


@dataclass
class Session:
    """Global options, and the services behind them.

    Attributes
    ----------
    site_file
        Site file named by ``--site``.
    no_input
        Never ask a question.
    """

    site_file: Path | None = None
    no_input: bool = False

    @cached_property
    def site(self) -> Site:
        """The site: machines and database."""
        from otf_workflows.settings import load_site

        return load_site(self.site_file)

    @cached_property
    def store(self) -> Store:
        """Our collections, after the database has answered."""
        from otf_workflows.connection import connect
        from otf_workflows.store import Store

        return Store(connect(self.site))

    @cached_property
    def engine(self) -> Engine:
        """What runs the jobs."""
        from otf_workflows.engine.choice import open_engine

        return open_engine(self.site)

    @property
    def dft_workers(self) -> int:
        """Labels computed at once on this site."""
        from otf_workflows.types import Role

        queue = self.site.queues.get(Role.DFT)
        if queue is not None:
            return queue.max_jobs * queue.side_by_side
        worker = self.site.workers.get(Role.DFT)
        return worker.count if worker else 0


def session(ctx: typer.Context) -> Session:
    """Return the session that the root command made."""
    return ctx.find_root().obj
