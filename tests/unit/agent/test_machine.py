"""The pure decisions of an agent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.agent import machine
from roost.agent.model import Task
from roost.ports.errors import Gone, StaleEpoch
from roost.ports.keeper import KeeperStatus
from roost.ports.kernels import KernelOrder


def order(epoch: int) -> KernelOrder:
    return KernelOrder(session_id="s", epoch=epoch, key="k")


def kernel(task_id: str, epoch: int, state: str = "ready") -> Task:
    return Task(task_id=task_id, session_id="s", epoch=epoch, state=state)


def standby(task_id: str, state: str = "ready", imports: tuple[str, ...] = ()) -> Task:
    return Task(task_id=task_id, state=state, imports=imports)


def test_the_same_order_finds_its_kernel() -> None:
    assert machine.plan_start([kernel("t", 2)], order(2), over=0).up == "t"


def test_the_warmest_standby_is_taken() -> None:
    tasks = [standby("a"), standby("b", imports=("json",)), standby("c", "starting")]
    assert machine.plan_start(tasks, order(1), over=0).take == "b"
    assert machine.plan_start([standby("c", "starting")], order(1), over=0).take == ""


def test_an_epoch_that_is_over_never_starts() -> None:
    with pytest.raises(StaleEpoch):
        machine.plan_start([kernel("t", 3)], order(2), over=0)
    with pytest.raises(StaleEpoch):
        machine.plan_start([], order(2), over=2)


def test_a_dead_kernel_is_not_started_again_at_its_epoch() -> None:
    with pytest.raises(Gone):
        machine.plan_start([kernel("t", 2, "dead")], order(2), over=0)
    assert machine.plan_start([kernel("t", 2, "dead")], order(3), over=0).stop == ("t",)


def test_only_the_very_next_epoch_keeps_the_memory() -> None:
    called_off = machine.plan_start([kernel("t", 2, "fenced")], order(3), over=2)
    assert (called_off.keep, called_off.stop) == ("t", ())
    elsewhere = machine.plan_start([kernel("t", 2, "fenced")], order(4), over=2)
    assert (elsewhere.keep, elsewhere.stop) == ("", ("t",))


def test_exactly_one_standby_is_kept() -> None:
    tasks = [standby("a"), standby("b", imports=("x",)), standby("d", "dead"), kernel("t", 1)]
    plan = machine.plan_warm(tasks, ("x",))
    assert (plan.keep, plan.stop) == ("b", ("a",))
    assert machine.plan_warm([kernel("t", 1)], ()).keep == ""


def test_commands_act_on_the_newest_kernel_only() -> None:
    tasks = [kernel("t", 2), standby("a")]
    assert machine.kernel_of(tasks, "s", 2).task_id == "t"
    with pytest.raises(StaleEpoch):
        machine.kernel_of(tasks, "s", 1)
    with pytest.raises(Gone):
        machine.kernel_of(tasks, "other", 1)
    with pytest.raises(Gone):
        machine.kernel_of(tasks, "", 0)


def test_a_dead_task_stays_dead() -> None:
    dead = machine.end(kernel("t", 2), 9)
    status = KeeperStatus(task_id="t", session_id="s", epoch=2, state="ready")
    assert machine.observe(dead, status) == dead
    assert machine.observe(standby("a"), status).session_id == "s"


STATES = st.sampled_from(["starting", "ready", "busy", "fenced", "dead"])
TASKS = st.lists(
    st.builds(
        Task,
        task_id=st.uuids().map(str),
        session_id=st.sampled_from(["", "s"]),
        epoch=st.integers(1, 5),
        state=STATES,
    ),
    max_size=5,
)


@given(TASKS, st.integers(1, 6), st.integers(0, 6))
def test_no_plan_leaves_two_kernels_of_a_session(tasks: list[Task], epoch: int, over: int) -> None:
    try:
        plan = machine.plan_start(tasks, order(epoch), over)
    except (StaleEpoch, Gone):
        return
    assert epoch > over
    alive = [t for t in tasks if t.session_id == "s" and not t.dead]
    left = {t.task_id for t in alive} - set(plan.stop)
    if not plan.up:
        assert left <= {plan.keep}
    assert len([x for x in (plan.up, plan.keep, plan.take) if x]) <= 1
