"""The life of a replica, without any replica."""

from hypothesis import given
from hypothesis import strategies as st

from roost.agent.replicas import machine
from roost.agent.replicas.machine import BACK_OFF, STEADY_AGAIN_S, STEADY_S, Life
from roost.ports.replicas import Health

HEALTH = Health(healthy=2, unhealthy=3, start_s=10.0)


def ready(now_s: float = 0.0) -> Life:
    life = machine.launched(Life(), now_s)
    for _ in range(HEALTH.healthy):
        assert life.state == "starting"
        life = machine.checked(life, HEALTH, "", now_s)
    return life


def test_so_many_good_answers_make_it_ready() -> None:
    life = machine.launched(Life(), 0.0)
    life = machine.checked(life, HEALTH, "", 1.0)
    life = machine.checked(life, HEALTH, "refused", 2.0)
    assert (life.state, life.detail) == ("starting", "not ready yet: refused")
    life = machine.checked(life, HEALTH, "", 3.0)
    assert life.state == "starting"
    life = machine.checked(life, HEALTH, "", 4.0)
    assert (life.state, life.ready_s, life.detail) == ("ready", 4.0, "")


def test_so_many_bad_answers_make_it_unhealthy_and_one_good_one_forgives() -> None:
    life = ready()
    for bad in ("slow", "slow", "", "slow", "slow"):
        life = machine.checked(life, HEALTH, bad, 5.0)
        assert life.state == "ready"
    life = machine.checked(life, HEALTH, "slow", 5.0)
    assert life.state == "unhealthy"
    assert life.detail == "unhealthy 3 times in a row: slow"


def test_pauses_grow_with_ends_in_a_row_and_a_steady_one_is_back_at_once() -> None:
    life, waits, now_s = machine.launched(Life(), 0.0), [], 0.0
    for _ in range(9):
        life = machine.ended(life, "exit code 1", now_s, exit_code=1)
        waits.append(life.again_s - now_s)
        now_s = life.again_s
        life = machine.launched(life, now_s)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert life.restarts == 9
    life = machine.ended(life, "exit code 1", now_s)
    assert life.detail.startswith("crash loop: 10 ends in a row, exit code 1, started again in 60")
    steady = machine.ended(ready(100.0), "killed", 100.0 + STEADY_S)
    assert (steady.failures, steady.again_s) == (1, 100.0 + STEADY_S + STEADY_AGAIN_S)


def test_silence_is_excused_while_it_works_but_not_for_ever() -> None:
    assert machine.excused(ready(), in_flight=1, silent_s=machine.AT_WORK_S - 1)
    assert not machine.excused(ready(), in_flight=1, silent_s=machine.AT_WORK_S)
    assert not machine.excused(ready(), in_flight=0, silent_s=0.0)
    assert not machine.excused(machine.launched(Life(), 0.0), in_flight=1, silent_s=0.0)


def test_what_ends_while_draining_is_over() -> None:
    life = machine.over(ready(), "exit code 0", 0)
    assert machine.shown(life, draining=True) == "ended"
    assert machine.shown(ready(), draining=True) == "draining"
    assert machine.shown(ready(), draining=False) == "ready"


def test_exit_statuses_in_words() -> None:
    assert machine.exit_reason(3, 512) == "exit code 3"
    assert machine.exit_reason(143, 512) == "ended by signal 15"
    assert "over its 512 MiB" in machine.exit_reason(137, 512)
    assert machine.exit_reason(-1, 512) == machine.exit_reason(None, 512)


STEPS = st.lists(
    st.tuples(st.sampled_from(("good", "bad", "end", "launch", "pull", "over")), st.floats(0, 50)),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_the_life_makes_sense(steps: list[tuple[str, float]]) -> None:
    life, now_s = Life(), 0.0
    for what, passed_s in steps:
        now_s += passed_s
        before = life
        match what:
            case "good" | "bad" if life.up and life.state != "unhealthy":
                life = machine.checked(life, HEALTH, "" if what == "good" else "no", now_s)
            case "end" if life.state != "ended":
                life = machine.ended(life, "gone", now_s, exit_code=1)
            case "launch" if not life.up and life.state != "ended":
                life = machine.launched(life, now_s)
            case "pull" if not life.up and life.state != "ended":
                life = machine.pulled(life, "image")
            case "over" if life.state != "ended":
                life = machine.over(life, "gone", None)
        assert life.up == (life.state in ("starting", "ready", "unhealthy") and life != Life())
        assert (life.ready_s is None) or life.state in ("ready", "unhealthy")
        assert life.restarts >= before.restarts
        assert len(life.detail) <= 300
        if life.state == "backing_off" and before.state != "backing_off":
            assert 0 < life.again_s - now_s <= BACK_OFF.ceiling_s
        if before.state == "ended":
            assert life == before
