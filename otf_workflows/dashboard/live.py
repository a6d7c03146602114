"""One look at the database for all viewers, and one stream of events for each page.

Events are names only: ``labels`` means that something about labels has changed. The page then
fetches the part of itself that shows labels. A change stream would need a replica set, which an
embedded database is not.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import TYPE_CHECKING

from otf_workflows.errors import OtfError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

logger = logging.getLogger(__name__)

LOOK_S = 2.5
"""Pause between two looks while somebody watches (s)."""
IDLE_LOOK_S = 30.0
"""The same while nobody does (s)."""
HEARTBEAT_S = 15.0
"""A comment keeps proxies and tunnels from closing a quiet stream (s)."""


class Topic(StrEnum):
    """What may have changed."""

    CAMPAIGNS = "campaigns"
    LABELS = "labels"
    JOBS = "jobs"
    MODELS = "models"
    DATABASE = "database"


class Live:
    """Looks at the database now and then, and tells subscribers what has changed.

    Parameters
    ----------
    look
        Returns a stamp for each topic; a stamp that differs from the one before means a change.
        Called in a thread; may raise :class:`~otf_workflows.errors.OtfError`.
    """

    def __init__(self, look: Callable[[], Mapping[Topic, object]]) -> None:
        self._look = look
        self._stamps: Mapping[Topic, object] | None = None
        self._subscribers: set[Subscriber] = set()
        self._wake = asyncio.Event()
        self._closed = False
        self.reachable = True

    @property
    def n_viewers(self) -> int:
        """Number of open streams."""
        return len(self._subscribers)

    async def run(self) -> None:
        """Look for ever; cancelled when the server ends."""
        while True:
            await self.look_once()
            pause_s = LOOK_S if self._subscribers else IDLE_LOOK_S
            self._wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self._wake.wait(),
                    pause_s * random.uniform(0.9, 1.1),  # many dashboards, one server
                )

    async def look_once(self) -> None:
        """Look at the database and tell everybody what has changed."""
        try:
            stamps = await asyncio.to_thread(self._look)
        except OtfError as error:
            if self.reachable:
                logger.warning("%s", error.what)
                self._tell({Topic.DATABASE})
            self.reachable = False
            return
        changed = set()
        if not self.reachable:
            self.reachable = True
            changed = set(Topic)
        before, self._stamps = self._stamps, stamps
        if before is not None:
            changed |= {topic for topic, stamp in stamps.items() if before.get(topic) != stamp}
        self._tell(changed)

    def _tell(self, topics: set[Topic]) -> None:
        for subscriber in self._subscribers:
            subscriber.add(topics)

    @contextmanager
    def subscribed(self) -> Iterator[Subscriber]:
        """Yield a subscriber for as long as a stream is open."""
        subscriber = Subscriber()
        self._subscribers.add(subscriber)
        self._wake.set()
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)

    def close(self) -> None:
        """End all streams, so that the server can stop at once."""
        self._closed = True
        for subscriber in self._subscribers:
            subscriber.end()

    async def stream(self) -> AsyncIterator[str]:
        """Yield server-sent events until the viewer leaves or the server stops."""
        with self.subscribed() as subscriber:
            yield "retry: 3000\n\n"
            while not self._closed:
                topics = await subscriber.wait(HEARTBEAT_S)
                if not topics:
                    yield ": still here\n\n"
                for topic in sorted(topics):
                    yield f"event: {topic}\ndata:\n\n"


class Subscriber:
    """Topics that one viewer has not been told of yet; never grows beyond their number."""

    def __init__(self) -> None:
        self._topics: set[Topic] = set()
        self._event = asyncio.Event()

    def add(self, topics: set[Topic]) -> None:
        """Note changed topics."""
        self._topics |= topics
        if topics:
            self._event.set()

    def end(self) -> None:
        """Wake the stream up so that it ends."""
        self._event.set()

    async def wait(self, seconds: float) -> set[Topic]:
        """Return the topics noted since the last call; none after so many quiet seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        self._event.clear()
        topics, self._topics = self._topics, set()
        return topics
