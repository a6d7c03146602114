"""A workflow as a picture: jobs of one stage drawn as one box, boxes in layers from left to right.

The layers are those of the longest path, the order inside a layer that of the boxes before it
(the barycentre heuristic of Sugiyama, Tagawa and Toda, IEEE Trans. SMC 11, 109, 1981).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.base import JobState
from otf_workflows.engine.records import STATES
from otf_workflows.engine.routing import CATEGORY, HELPER
from otf_workflows.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pymongo.database import Database

BOX_WIDTH = 164
BOX_HEIGHT = 74
GAP_X = 44
GAP_Y = 20
MARGIN = 4
MOST_BOXES = 60
"""A workflow of somebody else's with more names than this is drawn as one box per state."""

_JOB = {
    "_id": 0,
    "fw_id": 1,
    "name": 1,
    "state": 1,
    "spec.stage": 1,
    f"spec.{CATEGORY}": 1,
}


@dataclass
class Box:
    """Jobs drawn as one."""

    key: str
    title: str
    stage: str | None
    role: str | None
    fw_ids: list[int] = field(default_factory=list)
    counts: dict[JobState, int] = field(default_factory=dict)
    x: float = 0.0
    y: float = 0.0

    @property
    def n_jobs(self) -> int:
        """Number of jobs."""
        return len(self.fw_ids)

    @property
    def state(self) -> JobState:
        """What matters most about its jobs."""
        order = (JobState.RUNNING, JobState.FAILED, JobState.PAUSED, JobState.READY)
        if set(self.counts) == {JobState.DONE}:
            return JobState.DONE
        busy = next((state for state in order if self.counts.get(state)), JobState.WAITING)
        partly = self.counts.get(JobState.DONE) and busy is JobState.WAITING
        return JobState.RUNNING if partly else busy


@dataclass(frozen=True)
class Graph:
    """A drawn workflow; all lengths in SVG units."""

    workflow_id: int
    name: str
    boxes: list[Box]
    edges: list[str]
    width: float
    height: float


def workflow_graph(database: Database[dict[str, Any]], fw_id: int) -> Graph:
    """Return the picture of the workflow that a job belongs to.

    Parameters
    ----------
    database
        The site's database.
    fw_id
        Any job of it.

    Raises
    ------
    NotFoundError
        If no workflow has such a job.
    """
    workflow = database.workflows.find_one(
        {"nodes": fw_id}, {"_id": 0, "nodes": 1, "links": 1, "name": 1}
    )
    if workflow is None:
        raise NotFoundError(f"No workflow has a job {fw_id}.", hint="lpad get_wflows")
    jobs = list(database.fireworks.find({"fw_id": {"$in": workflow["nodes"]}}, _JOB))
    links = {int(parent): children for parent, children in workflow["links"].items()}
    boxes, edges = grouped(jobs, links)
    paths, width, height = lay_out(boxes, edges)
    return Graph(
        workflow_id=min(workflow["nodes"]),
        name=str(workflow["name"]),
        boxes=list(boxes.values()),
        edges=paths,
        width=width,
        height=height,
    )


def grouped(
    jobs: Iterable[Mapping[str, Any]], links: Mapping[int, Iterable[int]]
) -> tuple[dict[str, Box], set[tuple[str, str]]]:
    """Return boxes by key, and the pairs of boxes that depend on each other.

    Helper jobs of jobflow are left out: what depends on one depends on what it depends on.

    Parameters
    ----------
    jobs
        Firework documents.
    links
        Children of each job.
    """
    jobs = list(jobs)
    by_name = len({job["name"] for job in jobs}) <= MOST_BOXES
    boxes: dict[str, Box] = {}
    home: dict[int, str] = {}
    helpers = {job["fw_id"] for job in jobs if job["name"] == HELPER}
    for job in sorted(jobs, key=lambda item: item["fw_id"]):
        if job["fw_id"] in helpers:
            continue
        spec = job.get("spec") or {}
        stage = spec.get("stage")
        state = STATES.get(job["state"], JobState.FAILED)
        title = str(stage or (job["name"] if by_name else state))
        box = boxes.setdefault(title, Box(title, title, stage, spec.get(CATEGORY)))
        box.fw_ids.append(job["fw_id"])
        box.counts[state] = box.counts.get(state, 0) + 1
        home[job["fw_id"]] = title
    edges = {
        (home[parent], home[child])
        for parent in home
        for child in _beyond(parent, links, helpers)
        if child in home and home[parent] != home[child]
    }
    return boxes, edges


def _beyond(parent: int, links: Mapping[int, Iterable[int]], helpers: set[int]) -> set[int]:
    """Return the children of a job, helpers replaced by their own children."""
    found: set[int] = set()
    waiting = list(links.get(parent, ()))
    seen: set[int] = set()
    while waiting:
        child = waiting.pop()
        if child in seen:
            continue
        seen.add(child)
        if child in helpers:
            waiting += links.get(child, ())
        else:
            found.add(child)
    return found


def lay_out(
    boxes: Mapping[str, Box], edges: set[tuple[str, str]]
) -> tuple[list[str], float, float]:
    """Place the boxes; return the paths of the arrows, the width and the height.

    Parameters
    ----------
    boxes
        By key; their ``x`` and ``y`` are set.
    edges
        Pairs of keys, parent and child.
    """
    layers = _layers(boxes, edges)
    rank = _ranks(boxes, edges, layers)
    columns: dict[int, list[Box]] = {}
    for key in sorted(boxes, key=lambda key: (layers[key], rank[key])):
        columns.setdefault(layers[key], []).append(boxes[key])
    tallest = max((len(column) for column in columns.values()), default=0)
    height = tallest * BOX_HEIGHT + max(tallest - 1, 0) * GAP_Y + 2 * MARGIN
    for layer, column in columns.items():
        own = len(column) * BOX_HEIGHT + (len(column) - 1) * GAP_Y
        for place, box in enumerate(column):
            box.x = MARGIN + layer * (BOX_WIDTH + GAP_X)
            box.y = (height - own) / 2 + place * (BOX_HEIGHT + GAP_Y)
    width = max((box.x + BOX_WIDTH for box in boxes.values()), default=0) + MARGIN
    shown = _without_shortcuts(edges)
    return [_arrow(boxes[a], boxes[b]) for a, b in sorted(shown)], width, height


def _layers(boxes: Mapping[str, Box], edges: set[tuple[str, str]]) -> dict[str, int]:
    """Return the layer of each box: the longest way to it. Circles of groups are cut."""
    layers = dict.fromkeys(boxes, 0)
    for _ in range(len(boxes)):
        moved = False
        for parent, child in edges:
            if layers[child] <= layers[parent] < len(boxes) - 1:
                layers[child] = layers[parent] + 1
                moved = True
        if not moved:
            break
    used = {layer: place for place, layer in enumerate(sorted(set(layers.values())))}
    return {key: used[layer] for key, layer in layers.items()}


def _ranks(
    boxes: Mapping[str, Box], edges: set[tuple[str, str]], layers: Mapping[str, int]
) -> dict[str, float]:
    """Return the order inside layers: each box near the mean of its parents."""
    rank = {key: float(place) for place, key in enumerate(boxes)}
    for key in sorted(boxes, key=lambda key: layers[key]):
        parents = [rank[a] for a, b in edges if b == key]
        if parents:
            rank[key] = sum(parents) / len(parents) + 1e-3 * rank[key]
    return rank


def _without_shortcuts(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the edges that no longer way says already."""
    children: dict[str, set[str]] = {}
    for parent, child in edges:
        children.setdefault(parent, set()).add(child)

    def reaches(start: str, goal: str) -> bool:
        waiting = [child for child in children.get(start, ()) if child != goal]
        seen = set(waiting)
        while waiting:
            for child in children.get(waiting.pop(), ()):
                if child == goal:
                    return True
                if child not in seen:
                    seen.add(child)
                    waiting.append(child)
        return False

    return {(parent, child) for parent, child in edges if not reaches(parent, child)}


def _arrow(parent: Box, child: Box) -> str:
    x1, y1 = parent.x + BOX_WIDTH, parent.y + BOX_HEIGHT / 2
    x2, y2 = child.x - 7, child.y + BOX_HEIGHT / 2
    middle = (x1 + x2) / 2
    return f"M{x1:.0f} {y1:.0f}C{middle:.0f} {y1:.0f} {middle:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
