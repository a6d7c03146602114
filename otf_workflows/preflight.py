"""What must be there before a campaign starts, checked while nothing is written yet.

``otf doctor`` shows every check; ``otf run`` and ``otf submit`` refuse at the first that fails.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from otf_workflows.errors import ConfigurationError, DatabaseError, InputError, OtfError
from otf_workflows.types import Device, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otf_workflows.campaign import Campaign
    from otf_workflows.settings import Site

MIN_FREE_BYTES = 500 * 1024**2
"""Least free disk in the state folder: the database alone starts with 300 MB."""
CLOCK_TOLERANCE_S = 60.0
"""Leases last two minutes; clocks further apart than half of that may break them."""
COST_UNCERTAINTY = 12.0
"""Before any label is finished, the cost model is right within this factor."""

QUEUE_PATIENCE_S = 300.0
"""How long ``otf doctor`` waits for its test jobs (s)."""
DEFAULT_POTENTIAL = "chgnet-0.3.0"
"""What is loaded if no campaign names another one."""

_ERRORS: dict[int, type[OtfError]] = {2: InputError, 4: DatabaseError, 5: ConfigurationError}


class Check(BaseModel):
    """One thing that was looked at."""

    name: str = Field(description="What was looked at.")
    ok: bool
    detail: str = Field(description="What was found, in one sentence.")
    hint: str | None = Field(None, description="How to put it right; advice, if nothing is wrong.")
    exit_code: int = Field(5, description="Exit code of a run that would fail for it.")


def preflight(campaign: Campaign, site: Site, *, local: bool) -> None:
    """Refuse a campaign that cannot run here; nothing is written.

    Parameters
    ----------
    campaign
        The campaign.
    site
        The site.
    local
        Whether this process will start database and workers here (``otf run``); otherwise the
        database must answer now, and the workers may be on other machines.

    Raises
    ------
    ConfigurationError, DatabaseError, InputError
        For the first kind of problem, with all problems of that kind.
    """
    from otf_workflows.levels import check_level

    check_level(campaign)
    for group in _groups(campaign, site, local=local):
        failed = [check for check in group if not check.ok]
        if failed:
            raise _error(failed)


def _groups(campaign: Campaign, site: Site, *, local: bool) -> Iterator[list[Check]]:
    """Yield the checks of a campaign; each group is looked at only if those before are all right.

    Folders come late: until then nothing has been made on this machine.
    """
    yield [budget(campaign)]
    if local:
        here = Role.DFT not in site.queues
        yield [*labeler(campaign, site, here=here), potential(campaign.potential)]
    yield [state_folder(site)]
    yield [disk(site)]
    if local and site.database.mode == "embedded":
        yield [database_program(site)]
    else:
        yield [database(site)]
        yield [job_store(site)]


def _error(failed: list[Check]) -> OtfError:
    """Return one error for all failed checks of the same kind as the first."""
    code = failed[0].exit_code
    alike = [check for check in failed if check.exit_code == code]
    hints = dict.fromkeys(check.hint for check in alike if check.hint)
    return _ERRORS[code](
        "; ".join(check.detail for check in alike),
        where=", ".join(dict.fromkeys(check.name for check in alike)),
        hint="; ".join(hints) or "otf doctor",
    )


# -- one check each ------------------------------------------------------------------------------


def budget(campaign: Campaign) -> Check:
    """Check that the smallest possible campaign fits into the core-hours allowed."""
    from otf_workflows.labelers import parse_recipe
    from otf_workflows.labelers.cost import estimate_core_hours

    name = "budget"
    recipe = parse_recipe(campaign.labels)
    if not (hasattr(recipe, "n_electrons") and hasattr(recipe, "n_kpoints")):
        return Check(name=name, ok=True, detail="labels of this code cost next to nothing")
    frame = campaign.structure
    electrons = recipe.n_electrons(frame.numbers)
    each = estimate_core_hours(electrons, recipe.n_kpoints(frame), history=())
    least = campaign.selection.min_labels + campaign.selection.audit_per_cycle
    allowed = campaign.budget.max_core_hours
    if least * each / COST_UNCERTAINTY > allowed:
        return Check(
            name=name,
            ok=False,
            detail=f"budget.max_core_hours is {allowed:g}, but the {least} labels of one cycle "
            f"take about {least * each:.2g} core-hours",
            hint="raise budget.max_core_hours, or take a smaller cell or recipe",
            exit_code=2,
        )
    return Check(
        name=name,
        ok=True,
        detail=f"a label takes about {each:.1g} core-hours, at most {allowed:g} are allowed "
        "(a guess within a factor of ten until labels are finished)",
    )


def cutoff(campaign: Campaign) -> Check:
    """Say whether the recipe's cut-off is one that the pseudopotentials suggest."""
    from otf_workflows.cutoff_check import advice
    from otf_workflows.labelers import parse_recipe

    name = "cut-off"
    try:
        found = advice(parse_recipe(campaign.labels), campaign.structure.numbers)
    except OtfError as error:
        # What is missing fails the check of the labeler; there is nothing to say on top.
        return Check(name=name, ok=True, detail=f"not looked at: {error.what}")
    detail, hint = found or ("this code has none that can be checked", None)
    return Check(name=name, ok=True, detail=detail, hint=hint)


def labeler(campaign: Campaign, site: Site, *, here: bool = True) -> list[Check]:
    """Check programs and data files of the DFT code on this machine.

    Parameters
    ----------
    campaign
        The campaign.
    site
        The site.
    here
        Whether labels are computed here; otherwise what is missing is advice, for compute nodes
        may have it.
    """
    from otf_workflows.labelers import get_labeler, parse_recipe
    from otf_workflows.labelers.base import Resources

    code = campaign.labels["code"]
    resources = site.codes.get(code, Resources())
    missing = get_labeler(code).check(
        resources, campaign.structure.numbers, parse_recipe(campaign.labels)
    )
    name = f"DFT code '{code}'"
    if not missing:
        command = f"'{resources.command}'" if resources.command else "its default command"
        return [Check(name=name, ok=True, detail=f"ready, with {command}")]
    if not here:
        detail = f"not on this machine ({'; '.join(missing)}); labels run in the queue"
        return [Check(name=name, ok=True, detail=detail, hint="otf doctor --queue-test CAMPAIGN")]
    return [Check(name=name, ok=False, detail=sentence) for sentence in missing]


def potential(name: str) -> Check:
    """Check that the packages of a potential are installed, without loading them."""
    from otf_workflows.potentials import missing_packages, potential_entry

    missing = missing_packages(name)
    if missing:
        return Check(
            name=f"potential '{name}'",
            ok=False,
            detail=f"package {' and '.join(missing)} is not installed",
            hint=potential_entry(name).installation,
        )
    return Check(name=f"potential '{name}'", ok=True, detail="its packages are installed")


def potential_loads(name: str) -> Check:
    """Load a potential in a process of its own, as a worker does."""
    code = (
        "import sys; from otf_workflows.potentials import load_potential; "
        "load_potential(sys.argv[1])"
    )
    return _in_process(f"potential '{name}'", code, [name], ok="loads")


def job_modules() -> Check:
    """Import every job module in a process of its own, as a worker does."""
    code = (
        "import importlib, pkgutil, otf_workflows.jobs as jobs\n"
        "for found in pkgutil.iter_modules(jobs.__path__, jobs.__name__ + '.'):\n"
        "    importlib.import_module(found.name)\n"
        "import otf_workflows.flow"
    )
    return _in_process("job modules", code, [], ok="all import")


def _in_process(name: str, code: str, arguments: list[str], *, ok: str) -> Check:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode == 0:
        return Check(name=name, ok=True, detail=ok)
    lines = done.stderr.strip().splitlines()
    return Check(
        name=name,
        ok=False,
        detail=lines[-1] if lines else f"ended with code {done.returncode}",
        hint="pip install --force-reinstall otf-workflows",
    )


def state_folder(site: Site) -> Check:
    """Check that our folder is there (or can be made) and nobody else's."""
    return attempt("state folder", lambda: str(site.resolved_state_dir))


def disk(site: Site) -> Check:
    """Check the free space of the state folder."""
    folder = Path(site.resolved_state_dir)
    free = shutil.disk_usage(folder).free
    free_MB, wanted_MB = free // 1024**2, MIN_FREE_BYTES // 1024**2
    return Check(
        name="disk",
        ok=free >= MIN_FREE_BYTES,
        detail=f"{free_MB} MB are free in {folder}"
        + ("" if free >= MIN_FREE_BYTES else f"; at least {wanted_MB} MB are needed"),
        hint=None
        if free >= MIN_FREE_BYTES
        else "free some space, or choose another disk with OTF_STATE_DIR=/some/folder",
    )


def database_program(site: Site) -> Check:
    """Check that there is a program for the embedded database."""
    from otf_workflows.engine.mongod import find_binary

    if site.database.mode == "server":
        return Check(name="database program", ok=True, detail="not needed: a server is named")
    return attempt("database program", lambda: str(find_binary()))


def database(site: Site) -> Check:
    """Check that the database answers and lets us in."""
    from otf_workflows.connection import address, connect

    def look() -> str:
        connect(site).client.close()
        return f"{address(site)} answers"

    return attempt("database", look)


def job_store(site: Site) -> Check:
    """Check that job outputs would survive the worker that wrote them."""
    from otf_workflows import connection

    def look() -> str:
        found = connection.connect(site)
        connection.require_persistent(connection.job_store(site, found))
        found.client.close()
        return "outputs of jobs are kept in the database"

    return attempt("job store", look)


def clock(site: Site) -> Check:
    """Compare this machine's clock with the database server's."""
    from otf_workflows.connection import connect
    from otf_workflows.schemas import now

    def look() -> str:
        found = connect(site)
        theirs = found.command("hello")["localTime"].replace(tzinfo=UTC)
        found.client.close()
        apart = abs((now() - theirs).total_seconds())
        if apart > CLOCK_TOLERANCE_S:
            raise ConfigurationError(
                f"this clock and the database server's are {apart:.0f} s apart",
                hint="let both machines keep time with NTP (timedatectl set-ntp true)",
            )
        return f"within {max(apart, 1):.0f} s of the database server's"

    return attempt("clock", look)


def attempt(name: str, look: Callable[[], str]) -> Check:
    """Return a check that is all right unless ``look`` raises one of our errors."""
    try:
        return Check(name=name, ok=True, detail=look())
    except OtfError as error:
        detail = f"{error.what} ({error.where})" if error.where else error.what
        return Check(name=name, ok=False, detail=detail, hint=error.hint, exit_code=error.exit_code)


# -- all of them -----------------------------------------------------------------------------------


def all_checks(
    site: Site,
    *,
    campaign: Campaign | None = None,
    queue_test: bool = False,
    wait_s: float = QUEUE_PATIENCE_S,
) -> Iterator[Check]:
    """Yield every check, one after the other, cheap ones first; what ``otf doctor`` shows.

    Parameters
    ----------
    site
        The site.
    campaign
        Check what this campaign needs as well.
    queue_test
        Submit a short job of each role, and report what it finds where it runs.
    wait_s
        How long to wait for these jobs (s).
    """
    from otf_workflows import database_checks, site_checks
    from otf_workflows.engine.queues.checks import acceptance, test_jobs
    from otf_workflows.engine.remote.checks import engine_checks

    yield site_checks.configuration(site)
    yield from site_checks.foreign_files()
    folder = state_folder(site)
    yield folder
    if folder.ok:
        yield disk(site)
    yield database_program(site)
    if _database_expected(site):
        answer = database(site)
        yield answer
        if answer.ok:
            yield from _of_the_database(site)
        yield database_checks.tls(site, answers=answer.ok)
    else:
        yield Check(name="database", ok=True, detail="not started; 'otf up' or 'otf run' does it")
    yield job_modules()
    here = Role.DFT not in site.queues
    if campaign is not None:
        yield budget(campaign)
        yield cutoff(campaign)
        yield from labeler(campaign, site, here=here)
    if here:
        yield from site_checks.programs(site)
    name = campaign.potential if campaign is not None else DEFAULT_POTENTIAL
    installed = potential(name)
    yield potential_loads(name) if installed.ok else installed
    md_here = Role.MD not in site.queues
    yield site_checks.gpu(wanted=md_here and site.device is Device.CUDA)
    yield from engine_checks(site)
    yield from acceptance(site)
    if queue_test:
        yield from test_jobs(site, campaign=campaign, wait_s=wait_s)


def _of_the_database(site: Site) -> Iterator[Check]:
    """Yield what is looked at in a database that answers."""
    from otf_workflows import database_checks

    yield database_checks.rights(site)
    yield database_checks.indexes(site)
    yield job_store(site)
    yield database_checks.room(site)
    yield clock(site)


def _database_expected(site: Site) -> bool:
    """Whether a database should answer now."""
    if site.database.mode == "server":
        return True
    from otf_workflows.engine.mongod import EmbeddedMongod

    return EmbeddedMongod(site.resolved_state_dir, database=site.database.name).status().running
