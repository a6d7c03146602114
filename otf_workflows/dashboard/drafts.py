"""Campaigns that are being written: a folder each, with the file that ``otf submit`` would take.

A draft is an ordinary campaign file beside its structure, so that it can be looked at, copied and
submitted by hand as well.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otf_workflows.dashboard.draft_errands import CAMPAIGN_FILE, DraftReport
from otf_workflows.dashboard.errands import Errand, send
from otf_workflows.errors import InputError, NotFoundError
from otf_workflows.settings import private_folder

if TYPE_CHECKING:
    from otf_workflows.settings import Site

KEPT_DAYS = 30
MOST_STRUCTURE_BYTES = 1_500_000

_ENDINGS = {
    ".cif": "structure.cif",
    ".vasp": "POSCAR",
    ".poscar": "POSCAR",
    ".extxyz": "structure.extxyz",
    ".xyz": "structure.extxyz",
}
"""What a structure file is called in a draft; ASE tells the format from the name."""
_TYPED = "typed.json"
_REPORT = "report.json"


@dataclass(frozen=True)
class Draft:
    """One draft.

    Attributes
    ----------
    draft_id
        Its number, in addresses.
    folder
        Where its files are.
    """

    draft_id: str
    folder: Path

    @property
    def file(self) -> Path:
        """The campaign file."""
        return self.folder / CAMPAIGN_FILE

    @property
    def structure(self) -> Path | None:
        """The structure file, if there is one yet."""
        found = (self.folder / name for name in dict.fromkeys(_ENDINGS.values()))
        return next((path for path in found if path.is_file()), None)

    @property
    def typed(self) -> dict[str, str]:
        """The form as it was typed."""
        file = self.folder / _TYPED
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    @property
    def report(self) -> DraftReport | None:
        """What was found about it when it was last checked."""
        file = self.folder / _REPORT
        if not file.is_file():
            return None
        return DraftReport.model_validate_json(file.read_text(encoding="utf-8"))

    def put_structure(self, name: str, content: bytes) -> None:
        """Keep a structure file instead of the one before.

        Raises
        ------
        InputError
            If its name tells no format we read, or it is empty or too large.
        """
        upper = Path(name).name.upper()
        bare = "POSCAR" if re.match(r"(POSCAR|CONTCAR)\b", upper) else None
        target = bare or _ENDINGS.get(Path(name).suffix.lower())
        if target is None:
            raise InputError(
                f"'{Path(name).name[:80]}' is no structure file that can be read here",
                where="structure",
                hint="name it .cif, .vasp, POSCAR, .extxyz or .xyz",
            )
        if not content.strip() or len(content) > MOST_STRUCTURE_BYTES:
            size = "empty" if not content.strip() else "too large"
            raise InputError(f"the structure file is {size}", where="structure")
        for old in set(_ENDINGS.values()):
            (self.folder / old).unlink(missing_ok=True)
        (self.folder / target).write_bytes(content)

    def keep(self, typed: dict[str, str]) -> None:
        """Keep the form as it was typed, without a campaign file: it is not fit to be read."""
        (self.folder / _TYPED).write_text(json.dumps(typed), encoding="utf-8")
        (self.folder / _REPORT).unlink(missing_ok=True)
        self.file.unlink(missing_ok=True)

    def write(self, campaign: dict[str, Any], *, typed: dict[str, str], head: str) -> None:
        """Write the campaign file, and keep the form as it was typed."""
        import yaml

        self.keep(typed)
        text = yaml.safe_dump(
            campaign, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
        )
        self.file.write_text(f"# {head}\n{text}", encoding="utf-8")

    def check(self, site: Site) -> DraftReport:
        """Read it as a run would and estimate its cost; the answer is kept beside it."""
        report = _ask(Errand.CHECK, self.folder, site)
        (self.folder / _REPORT).write_text(report.model_dump_json(), encoding="utf-8")
        return report

    def submit(self, site: Site, *, digest: str) -> DraftReport:
        """Submit it, if it is still what the person has seen.

        Parameters
        ----------
        site
            The site.
        digest
            Of the report that was shown.

        Raises
        ------
        InputError
            If the draft has changed since; nothing was submitted.
        """
        seen = self.report
        if seen is None or seen.problem is not None or not digest or seen.digest != digest:
            raise InputError("the draft has changed since you looked at it: nothing was submitted")
        return _ask(Errand.SUBMIT, self.folder, site)


def new_draft(site: Site) -> Draft:
    """Return an empty draft; those that nobody touched for a month are removed."""
    root = _root(site)
    oldest = time.time() - KEPT_DAYS * 86_400
    for folder in root.iterdir():
        if folder.is_dir() and folder.stat().st_mtime < oldest:
            shutil.rmtree(folder, ignore_errors=True)
    draft_id = secrets.token_hex(8)
    return Draft(draft_id, private_folder(root / draft_id))


def open_draft(site: Site, draft_id: str) -> Draft:
    """Return a draft.

    Raises
    ------
    NotFoundError
        If there is none of this number.
    """
    folder = _root(site) / draft_id
    if not re.fullmatch(r"[0-9a-f]{16}", draft_id) or not folder.is_dir():
        raise NotFoundError("there is no such draft (any more)", hint="otf init")
    return Draft(draft_id, folder)


def _root(site: Site) -> Path:
    return private_folder(site.resolved_state_dir / "drafts")


def _ask(errand: Errand, folder: Path, site: Site) -> DraftReport:
    answer = send(errand, str(folder), site=site)
    if answer.problem is not None:
        return DraftReport(problem=answer.problem)
    return DraftReport.model_validate_json(answer.result)
