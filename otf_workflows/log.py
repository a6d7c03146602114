"""Where log lines go. Nothing is configured on import; a process calls one of these once."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
CHATTY = ("fireworks", "launchpad", "rocket.launcher", "jobflow", "pymongo", "matplotlib")
"""Loggers of libraries that tell every step; only their warnings are kept."""


def log_to_file(path: Path, *, level: int = logging.INFO) -> None:
    """Send our log lines to a file, appended.

    Parameters
    ----------
    path
        The file; its folder is made if needed.
    level
        Lines below this level are dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _configure(logging.FileHandler(path, encoding="utf-8"), level)


def log_to_stderr(*, level: int = logging.WARNING) -> None:
    """Send our log lines to stderr; stdout is for data.

    Parameters
    ----------
    level
        Lines below this level are dropped.
    """
    _configure(logging.StreamHandler(sys.stderr), level)


def quieten_libraries() -> None:
    """Keep only warnings of libraries that log every step they take.

    FireWorks puts its own handlers on its loggers whenever one is asked for, at a level read from
    its configuration; the loggers are therefore muted by a filter, which stays.
    """
    for name in CHATTY:
        logger = logging.getLogger(name)
        if _warnings_only not in logger.filters:
            logger.addFilter(_warnings_only)


def _warnings_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _ours_or_warning(record: logging.LogRecord) -> bool:
    return record.name.startswith("otf_workflows") or record.levelno >= logging.WARNING


def _configure(handler: logging.Handler, level: int) -> None:
    # Libraries set levels on their own loggers, so the handler has to be the one that refuses.
    handler.addFilter(_ours_or_warning)
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("otf_workflows").setLevel(level)
    quieten_libraries()
