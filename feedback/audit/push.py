"""Put a plan on a Label Studio server: a project, and one task for each pair that is not there yet.

What is there is listed first, so a second push creates nothing, and one that was killed is completed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from shlex import quote

from vlm_rlaif.feedback.audit.label_studio import Project, Server, Task
from vlm_rlaif.feedback.audit.places import Place, prepare
from vlm_rlaif.feedback.audit.results import labeling_config
from vlm_rlaif.feedback.audit.tasks import AuditPair, StandingPlan, command, failure, pairs_of, task_of, title_of
from vlm_rlaif.warehouse.care.keys import audit_project_id
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.records import AuditProject, row_id
from vlm_rlaif.warehouse.runs import derive
from vlm_rlaif.warehouse.store import Warehouse

CHUNK = 250
"""Tasks of one request, which arrive all or not at all."""
INSTRUCTIONS = (
    "Watch the video, read the question and both answers, and say which answer is better. Go by the video: what the "
    "judge was told may be wrong. Say what is wrong with the worse one, and how sure you are."
)

Tell = Callable[[str], None]
"""Called with how far it is."""


@dataclass(slots=True)
class Pushed:
    """What a push came to."""

    url: str
    project: int
    title: str
    created: int = 0
    stood: int = 0
    surplus: int = 0
    """Tasks that were deleted: their pair has another one, and nobody had begun with them."""
    mended: int = 0
    """Tasks of which the number of people was set."""
    moved: int = 0
    """Tasks whose video has another address now."""
    wrong_videos: dict[str, str] = field(default_factory=dict)
    """Video -> why no browser plays it."""
    left_out: int = 0
    """Pairs of these videos."""
    doubled: list[str] = field(default_factory=list)
    """Pairs of which people have begun with more than one task."""


def push(
    warehouse: Warehouse, plan: StandingPlan, server: Server, place_in: Callable[[int, Sequence[Task]], Place],
    *, new_project: bool = False, restore_config: bool = False, move: bool = False, tell: Tell = lambda line: None,
) -> Pushed:  # fmt: skip
    """Bring the project of a plan up to what the plan says. `place_in` makes the videos' places for a project
    and the tasks that stand in it.

    `move`: tasks that are there play their videos from these places too, if they do not yet.
    Raises `UserError` where the project is gone or was changed, with what to do.
    """
    if plan.closed_at is not None and not new_project:
        raise closed(warehouse, plan)
    with only_one(warehouse, "audit-push"):
        replay(warehouse)
        pairs = pairs_of(warehouse, plan.plan_id)
        project = _project(warehouse, plan, server, pairs, new_project=new_project, restore_config=restore_config)
        done = Pushed(server.url, project.number, project.title)
        there = server.tasks(project.number)
        missing = _missing(there, pairs)
        done.stood = len(pairs) - len(missing)
        addresses, done.wrong_videos = prepare(place_in(project.number, there), pairs if move else missing, tell)
        _keep_failures(warehouse, plan, missing, done.wrong_videos)
        sent = [pair for pair in missing if pair.video_id in addresses]
        done.left_out = len(missing) - len(sent)

        def add(chunk: Sequence[AuditPair]) -> list[int]:
            numbers = server.add_tasks(project.number, [task_of(pair, addresses[pair.video_id]) for pair in chunk])
            done.created += len(chunk)
            tell(f"{done.stood + done.created:,} of {len(pairs):,} tasks are on the server")
            return numbers

        _add_all(server, project.number, sent, add)
        if sent or any(pair.annotators > 1 for pair in pairs):
            there = server.tasks(project.number)
        surplus = _surplus(server, there, pairs)
        done.surplus = len(surplus)
        there = [task for task in there if task.number not in surplus]
        done.mended = _settle(server, there, pairs)
        if move:
            done.moved = _move(server, there, pairs, addresses)
        standing = Counter(task.pair_id for task in there)
        done.doubled = [pair.pair_id for pair in pairs if standing[pair.pair_id] > 1]
        return done


def closed(warehouse: Warehouse, plan: StandingPlan) -> UserError:
    return UserError(
        f"The audit {plan.name!r} was closed on {plan.closed_at:%Y-%m-%d %H:%M} UTC.",
        command("plan", warehouse.path, "ANOTHER_NAME"),
    )


def hash_config(config: str) -> str:
    return row_id("labeling config", config)


def require_config(warehouse: Warehouse, plan: StandingPlan, project: Project) -> None:
    """Raises `UserError` if somebody changed the labeling config: results would mean something else."""
    if plan.config_hash != hash_config(project.config):
        raise UserError(
            f"The labeling config of the project {project.number} ({project.title}) is not the one that was pushed.",
            command("push", warehouse.path, plan.called, "--restore-config"),
        )


def _missing(there: Sequence[Task], pairs: Sequence[AuditPair]) -> list[AuditPair]:
    stand = {task.pair_id for task in there}
    return [pair for pair in pairs if pair.pair_id not in stand]


def require_server(warehouse: Warehouse, plan: StandingPlan, server: Server) -> None:
    """Raises `UserError` for another server than the plan's: a project of that number there is another one."""
    if plan.url not in (None, server.url):
        raise UserError(
            f"The audit {plan.name!r} is on {plan.url}, project {plan.project}, not on {server.url}.",
            f"--url {quote(str(plan.url))}",
            f"{command('push', warehouse.path, plan.called, '--new-project')}   (begins anew on the other one)",
        )


def _project(
    warehouse: Warehouse, plan: StandingPlan, server: Server, pairs: Sequence[AuditPair], *, new_project: bool,
    restore_config: bool,
) -> Project:  # fmt: skip
    """The plan's project on the server: the one that is known, or was made by a push that died, or a new one."""
    if plan.project is None or new_project:
        project = _orphan(warehouse, plan, server, pairs) or server.create_project(
            title_of(plan), labeling_config(), INSTRUCTIONS
        )
        _record(warehouse, plan, server.url, project)
        return project
    require_server(warehouse, plan, server)
    project = server.project(plan.project)
    require_title(plan, project)
    if restore_config and hash_config(project.config) != hash_config(labeling_config()):
        project = _put_config(server, project)
        plan = replace(plan, config_hash=hash_config(project.config))
        warehouse.execute("UPDATE audit_projects SET config_hash = ? WHERE audit_project_id = ?",
                          [plan.config_hash, plan.audit_project_id])  # fmt: skip
    require_config(warehouse, plan, project)
    return project


def _orphan(
    warehouse: Warehouse, plan: StandingPlan, server: Server, pairs: Sequence[AuditPair]
) -> Project | None:  # fmt: skip
    """A project of the plan that a push made and had no time to record, its config as it should be."""
    recorded = warehouse.rows(
        "SELECT project FROM audit_projects WHERE plan_id = ? AND url = ?", [plan.plan_id, server.url]
    )
    known, ours = {row["project"] for row in recorded}, {pair.pair_id for pair in pairs}
    for project in server.projects(f"[{plan.plan_id}]"):
        if project.number not in known and all(task.pair_id in ours for task in server.tasks(project.number)):
            return _put_config(server, project)
    return None


def _put_config(server: Server, project: Project) -> Project:
    """The project with the labeling config of this version."""
    server.put_config(project.number, labeling_config())
    return server.project(project.number)


def require_title(plan: StandingPlan, project: Project) -> None:
    """Another server at the same address may have a project of the same number."""
    if plan.plan_id not in project.title:
        raise UserError(
            f"The project {project.number} on {plan.url} is {project.title!r}, not that of the audit {plan.name!r}.",
            "Is it another server? With --new-project the audit begins anew there.",
        )


def _record(warehouse: Warehouse, plan: StandingPlan, url: str, project: Project) -> None:
    config = {"plan": plan.name, "url": url, "project": project.number}
    derive(warehouse, "audit", config, lambda run_id: [AuditProject(
        audit_project_id=audit_project_id(plan.plan_id, url, project.number), plan_id=plan.plan_id, url=url,
        project=project.number, config_hash=hash_config(project.config), run_id=run_id,
    )])  # fmt: skip


def _keep_failures(
    warehouse: Warehouse, plan: StandingPlan, missing: Sequence[AuditPair], wrong: dict[str, str]
) -> None:
    """Pairs that cannot be shown, because no browser plays their video. The next push tries them again."""
    failures = [
        failure(plan, pair.pair_id, kind="video", message=wrong[pair.video_id])
        for pair in missing
        if pair.video_id in wrong
    ]
    if failures:
        derive(warehouse, "audit", {"plan": plan.name}, lambda run_id: [replace(f, run_id=run_id) for f in failures])


def _add_all(
    server: Server, project: int, pairs: Sequence[AuditPair], add: Callable[[Sequence[AuditPair]], list[int]]
) -> None:  # fmt: skip
    """Add tasks in chunks, those for one person first.

    The server gives a new task to as many people as the project says, and a change of that number changes all tasks
    unless some task is for several people already. So one such task is made by hand, then the number is changed.
    """
    alone = [pair for pair in pairs if pair.annotators == 1]
    shared = [pair for pair in pairs if pair.annotators > 1]
    for at in range(0, len(alone), CHUNK):
        add(alone[at : at + CHUNK])
    if shared:
        for number in add(shared[:1]):
            server.set_overlap(number, shared[0].annotators)
        server.set_default_overlap(project, shared[0].annotators)
    for at in range(1, len(shared), CHUNK):
        add(shared[at : at + CHUNK])


def _surplus(server: Server, there: Sequence[Task], pairs: Sequence[AuditPair]) -> set[int]:
    """Delete the newest tasks of pairs that have several, but none that somebody has begun with; their numbers.

    A server finishes the request of a push that was killed, while the next push finds the tasks missing.
    """
    of: dict[str, list[int]] = {pair.pair_id: [] for pair in pairs}
    for task in there:
        of.get(task.pair_id, []).append(task.number)
    deleted: set[int] = set()
    for numbers in of.values():
        left = len(numbers)
        for number in sorted(numbers, reverse=True) if left > 1 else ():
            if left > 1 and server.untouched(number):
                server.delete_task(number)
                deleted.add(number)
                left -= 1
    return deleted


def _settle(server: Server, there: Sequence[Task], pairs: Sequence[AuditPair]) -> int:
    """Set how many people are to see a task, where the server says something else; how many were set."""
    wanted = {pair.pair_id: pair.annotators for pair in pairs}
    wrong = [task for task in there if wanted.get(task.pair_id, task.overlap) != task.overlap]
    for task in wrong:
        server.set_overlap(task.number, wanted[task.pair_id])
    return len(wrong)


def _move(server: Server, there: Sequence[Task], pairs: Sequence[AuditPair], addresses: dict[str, str]) -> int:
    """Let standing tasks play their videos from where these are now; how many did not."""
    known = {pair.pair_id: pair for pair in pairs if pair.video_id in addresses}
    stale = [
        task for task in there if task.pair_id in known and task.video != addresses[known[task.pair_id].video_id]
    ]
    for task in stale:
        pair = known[task.pair_id]
        server.set_data(task.number, task_of(pair, addresses[pair.video_id])["data"])
    return len(stale)
