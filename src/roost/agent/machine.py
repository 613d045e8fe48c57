"""What a host does with its tasks, as pure decisions: a snapshot in, instructions with reasons out.

    starting -> ready <-> busy -> fenced        (a called-off move: fenced -> ready at the next epoch)
    any -> dead                                  (the keeper ended, or gave up on its kernel)

Epochs: a host never runs two kernels of one session, and never starts an epoch that was fenced or
stopped here. It knows nothing of sockets, files or clocks.
"""

from collections.abc import Iterable

import msgspec

from roost.agent.model import Task
from roost.ports.errors import Gone, StaleEpoch
from roost.ports.keeper import KeeperStatus
from roost.ports.kernels import KernelOrder

FROM_KEEPER = {
    "starting": "starting",
    "standby": "ready",
    "ready": "ready",
    "busy": "busy",
    "fenced": "fenced",
    "dead": "dead",
}
"""A keeper's word for its state -> ours."""


def observe(task: Task, status: KeeperStatus) -> Task:
    """The task as its keeper reports it. A dead task stays dead."""
    if task.dead:
        return task
    return msgspec.structs.replace(
        task,
        session_id=status.session_id,
        epoch=status.epoch,
        state=FROM_KEEPER.get(status.state, "starting"),
        imports=status.imports,
        kernel_pid=status.kernel_pid,
        keeper_pid=status.keeper_pid or task.keeper_pid,
    )


def end(task: Task, exit_code: int | None) -> Task:
    """The task as it is after its keeper ended."""
    return msgspec.structs.replace(task, state="dead", exit_code=exit_code, kernel_pid=0)


class StartPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How to obey a KernelOrder: stop what is in the way, then one of the others."""

    stop: tuple[str, ...] = ()
    """Tasks of older epochs of the session."""
    up: str = ""
    """This task already is the kernel of this epoch."""
    keep: str = ""
    """This task is the session's kernel of the epoch before: it takes the new epoch as it is."""
    take: str = ""
    """This standby becomes the session's kernel. None of the three: start one."""
    reason: str = ""


def plan_start(tasks: Iterable[Task], order: KernelOrder, over: int) -> StartPlan:
    """``over``: the highest epoch of the session that is over here. ``StaleEpoch``, ``Gone``."""
    known = tuple(tasks)
    mine = [task for task in known if task.session_id == order.session_id]
    newest = max((task.epoch for task in mine), default=0)
    if order.epoch <= over or order.epoch < newest:
        raise StaleEpoch(
            f"epoch {order.epoch} of {order.session_id} is over here: "
            f"{max(over, newest)} was seen on this host"
        )
    stop: list[str] = []
    keep = ""
    for task in mine:
        if task.epoch == order.epoch:
            if task.dead:
                raise Gone(
                    f"the kernel of {order.session_id} at epoch {order.epoch} has ended",
                    hint="restore it at the next epoch",
                )
            return StartPlan(up=task.task_id, reason="it runs at this epoch")
        # One epoch on means that no other place can have worked in between: what is in its memory
        # is newer than any checkpoint.
        if task.epoch == order.epoch - 1 and not task.dead and not keep:
            keep = task.task_id
        else:
            stop.append(task.task_id)
    if keep:
        return StartPlan(stop=tuple(stop), keep=keep, reason="the move was called off")
    standby = [task for task in known if task.standby and task.state == "ready"]
    take = max(standby, key=lambda task: (len(task.imports), task.task_id), default=None)
    return StartPlan(
        stop=tuple(stop),
        take=take.task_id if take else "",
        reason="a standby kernel is warm" if take else "no standby kernel is ready",
    )


class WarmPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How to have exactly one standby kernel with some imports."""

    keep: str = ""
    """Warm this one (again); empty: start one."""
    stop: tuple[str, ...] = ()


def plan_warm(tasks: Iterable[Task], imports: tuple[str, ...]) -> WarmPlan:
    """The best standby stays: what it has imported more than asked does no harm."""
    standby = [task for task in tasks if task.standby and not task.dead]
    wanted = set(imports)
    standby.sort(key=lambda task: (-len(wanted & set(task.imports)), task.task_id))
    return WarmPlan(
        keep=standby[0].task_id if standby else "",
        stop=tuple(task.task_id for task in standby[1:]),
    )


def check_newest(mine: Iterable[Task], session_id: str, epoch: int) -> None:
    """``StaleEpoch`` when a newer epoch of the session runs here."""
    newest = max((task.epoch for task in mine), default=0)
    if newest > epoch:
        raise StaleEpoch(f"epoch {epoch} of {session_id} is over: {newest} runs here")


def kernel_of(tasks: Iterable[Task], session_id: str, epoch: int) -> Task:
    """The living kernel that a command of ``epoch`` may act on. ``StaleEpoch``, ``Gone``."""
    mine = [t for t in tasks if t.session_id == session_id and session_id]
    check_newest(mine, session_id, epoch)
    newest = max(mine, key=lambda task: task.epoch, default=None)
    if newest is None or newest.dead:
        raise Gone(f"no kernel of {session_id} runs here")
    return newest
