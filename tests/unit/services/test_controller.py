"""The room of services around hosts in memory: roll-outs, notices, losses, restarts, storms."""

import random

import msgspec
import pytest

from roost.fleet.groups.model import HostState
from roost.gateway.model import Hosts
from roost.ports.errors import Conflict, Gone, Invalid
from roost.services.model import (
    Endpoint,
    Outcome,
    ReplicaState,
    Rollout,
    Service,
    ServiceState,
    Wish,
)
from tests.unit.services.world import World, wish

S = ServiceState


async def running(world: World, least: int = 2, most: int = 10) -> Service:
    service = await world.service.create("web", wish(least=least, most=most))
    await world.run(6)
    service = await world.now(service)
    assert service.state is S.RUNNING
    return service


def notice(world: World, host_id: str, left_s: float) -> None:
    host = world.hosts[host_id]
    deadline_s = world.clock.at_s + left_s
    host.host = type(host.host)(
        **{
            **{f: getattr(host.host, f) for f in host.host.__struct_fields__},
            "state": HostState.NOTICED,
            "deadline_s": deadline_s,
        }
    )


def members(world: World, service: Service) -> dict[str, bool]:
    route = world.routes.route(service.id)
    assert route is not None
    assert isinstance(route.target, Hosts)
    return {m.host_id: m.draining for m in route.target.members}


async def test_a_service_starts_serves_and_is_deleted() -> None:
    world = World()
    service = await world.service.create("web", wish(least=2))
    assert world.woken == {service.id}
    await world.step()
    assert members(world, service) == {}, "requests wait before the first replica is ready"
    await world.run(6)
    service = await world.now(service)
    assert service.state is S.RUNNING
    assert service.current.outcome is Outcome.GOOD
    assert len(world.serving(service.id)) >= 2
    assert members(world, service) == {"i-001": False}
    await world.service.delete(service.id)
    await world.run(10)
    assert (await world.now(service)).state is S.DELETED
    assert world.ledger.of(service.id) == []
    assert world.routes.route(service.id) is None
    assert not world.hosts["i-001"].orders, "the host was told"
    with pytest.raises(Gone):
        await world.service.get("web")


async def test_an_update_replaces_one_by_one_and_never_serves_with_fewer() -> None:
    world = World(hosts=2)
    service = await running(world, least=3)
    await world.service.update("web", wish("newer", least=3))
    fewest = 99

    def watch() -> None:
        nonlocal fewest
        fewest = min(fewest, len(world.serving(service.id)))

    await world.run(40, watch)
    service = await world.now(service)
    assert (service.state, service.revision) == (S.RUNNING, 2)
    assert {r.revision for r in world.ledger.of(service.id)} == {2}
    assert fewest >= 3


async def test_an_update_that_crashes_is_rolled_back_by_itself() -> None:
    world = World(hosts=2)
    service = await running(world, least=2)
    world.broken.add("bad")
    await world.service.update("web", wish("bad", least=2))
    fewest = 99

    def watch() -> None:
        nonlocal fewest
        fewest = min(fewest, len(world.serving(service.id)))

    await world.run(30, watch)
    service = await world.now(service)
    assert (service.state, service.revision) == (S.RUNNING, 1)
    assert service.wish.spec.command == ("server",), "the next change does not bring it back"
    failed = service.numbered(2)
    assert failed is not None
    assert failed.outcome is Outcome.FAILED
    assert "exit code 3" in failed.message
    assert "back at revision 1" in service.message
    assert "RolledBack" in await world.events(service)
    assert fewest >= 2, "the good revision served all the time"
    again, different = await world.service.update("web", wish("bad", least=2))
    assert different, "the same wish is tried again when asked for again"
    assert again.revision == 3


async def test_without_rollback_the_old_revision_serves_on_and_the_service_says_it_fails() -> None:
    world = World(hosts=2)
    service = await running(world, least=2)
    world.broken.add("bad")
    rollout = Rollout(rollback=False, drain_s=5)
    await world.service.update("web", wish("bad", least=2, rollout=rollout))
    await world.run(30)
    service = await world.now(service)
    assert (service.state, service.revision) == (S.FAILING, 2)
    assert len(world.serving(service.id)) >= 2
    back = await world.service.rollback("web")
    assert back.current.spec.command == ("server",)
    await world.run(30)
    assert (await world.now(service)).state is S.RUNNING


async def test_the_first_revision_that_crashes_has_nothing_to_go_back_to() -> None:
    world = World()
    world.broken.add("bad")
    service = await world.service.create("web", wish("bad"))
    await world.run(20)
    service = await world.now(service)
    assert service.state is S.FAILING
    assert "exit code 3" in service.message
    world.broken.clear()
    await world.run(10)
    assert (await world.now(service)).state is S.RUNNING, "hosts go on trying"


async def test_an_image_that_is_missing_fails_before_anything_was_started() -> None:
    world = World(hosts=2)
    service = await running(world)
    world.missing.add("typo")
    await world.service.update("web", wish("typo", least=2))
    await world.run(15)
    service = await world.now(service)
    assert (service.state, service.revision) == (S.RUNNING, 1)
    assert "image typo is not here" in service.message


async def test_one_that_is_never_ready_fails_after_its_time() -> None:
    world = World(hosts=2)
    service = await running(world)
    world.hosts["i-001"].step = world.hosts["i-002"].step = lambda *_: None  # type: ignore[method-assign]
    rollout = Rollout(timeout_s=5, drain_s=2)
    await world.service.update("web", wish("slow", least=2, rollout=rollout))
    await world.run(20)
    service = await world.now(service)
    assert service.revision == 1
    assert "not ready within 5 s" in service.message


async def test_a_notice_replaces_first_and_drains_then() -> None:
    world = World(hosts=2, boot_s=4)
    service = await running(world, least=3)
    fewest = 99

    def watch() -> None:
        nonlocal fewest
        fewest = min(fewest, len(world.serving(service.id)))

    (taken,) = {r.host_id for r in world.ledger.of(service.id)} & {"i-001"}
    notice(world, taken, 60)
    await world.run(30, watch)
    assert fewest >= 3
    assert all(r.host_id != taken for r in world.ledger.of(service.id))
    assert world.hosts[taken].alive, "it left long before its host did"
    assert taken not in members(world, service)


async def test_a_whole_pool_noticed_at_once_serves_until_others_do() -> None:
    world = World(hosts=2, boot_s=8)
    service = await running(world, least=6)
    before = {r.host_id for r in world.ledger.of(service.id)}
    for host_id in before:
        notice(world, host_id, 40)
    fewest = 99

    def watch() -> None:
        nonlocal fewest
        fewest = min(fewest, len(world.serving(service.id)))

    await world.run(39, watch)
    assert fewest >= 6
    assert not {r.host_id for r in world.ledger.of(service.id)} & before


async def test_a_notice_too_short_keeps_the_last_replica_to_the_last_moment() -> None:
    world = World(hosts=1, boot_s=30)
    service = await running(world, least=1)
    notice(world, "i-001", 10)
    await world.run(7)
    assert world.serving(service.id), "nothing else serves: it stays while it can"
    await world.run(40)
    assert world.serving(service.id)
    assert "i-001" not in members(world, service)


async def test_a_host_that_dies_is_replaced_and_a_silent_one_is_given_up() -> None:
    world = World(hosts=2, boot_s=2)
    service = await running(world, least=4)
    world.hosts["i-001"].alive = False
    await world.run(10)
    assert len(world.serving(service.id)) >= 4
    assert "i-001" not in members(world, service)
    world.hosts["i-002"].connected = False
    await world.run(10)
    assert any(r.host_id == "i-002" for r in world.ledger.of(service.id)), "a moment is no loss"
    await world.run(15)
    assert all(r.host_id != "i-002" for r in world.ledger.of(service.id))
    world.hosts["i-002"].connected = True
    await world.run(3)
    again = [o for o in world.hosts["i-002"].orders.values() if o.draining]
    known = {r.id for r in world.ledger.on("i-002")}
    assert not again
    assert set(world.hosts["i-002"].orders) == known, "it is told its whole set when it is back"


async def test_a_person_says_how_many_and_gives_it_back() -> None:
    world = World(hosts=3)
    service = await running(world, least=1)
    await world.service.scale("web", 7)
    await world.run(20)
    assert len(world.serving(service.id)) == 7
    await world.service.scale("web", 2)
    await world.run(20)
    assert len(world.ledger.of(service.id)) == 2
    with pytest.raises(Invalid, match="between 1 and 10"):
        await world.service.scale("web", 11)
    back = await world.service.scale("web", None)
    assert back.person is None


async def test_without_room_the_group_is_asked_for_hosts_at_once() -> None:
    world = World(slots=2, hosts=0, boot_s=4)
    service = await world.service.create("web", wish(least=5))
    await world.step()
    await world.scaler._grow()
    assert world.wants[-1][0] >= 3
    assert "wait for a place" in world.wants[-1][1]
    await world.run(15)
    assert len(world.serving(service.id)) >= 5
    assert all(len(h.orders) <= 2 for h in world.hosts.values()), "slots are kept"


async def test_control_killed_at_any_moment_goes_on_where_it_was() -> None:
    world = World(hosts=2)
    service = await running(world, least=3)
    before = {r.id for r in world.ledger.of(service.id)}
    await world.service.update("web", wish("newer", least=3))
    for _ in range(25):
        await world.run(2)
        world.restart()
    service = await world.now(service)
    assert (service.state, service.revision) == (S.RUNNING, 2)
    assert not {r.id for r in world.ledger.of(service.id)} & before
    generations = [h.generation for h in world.hosts.values()]
    assert max(generations) >= 3


async def test_the_same_name_or_a_bad_wish_is_refused_and_a_token_is_known_again() -> None:
    world = World()
    first = await world.service.create("web", wish(), "token")
    assert (await world.service.create("web", wish(), "token")).id == first.id
    with pytest.raises(Conflict, match="already"):
        await world.service.create("web", wish())
    with pytest.raises(Invalid, match="max 1 is below min 3"):
        await world.service.create("two", wish(least=3, most=1))
    with pytest.raises(Gone, match="no group other"):
        await world.service.create("two", type(wish())(spec=wish().spec, group="other"))
    with pytest.raises(Invalid, match="no name of a service"):
        await world.service.create("Two!", wish())
    big = type(wish())(spec=type(wish().spec)(command=("x",), vcpus=64))
    with pytest.raises(Invalid, match="fits no host of group default, which have 4"):
        await world.service.create("two", big)
    await world.service.delete("web")
    with pytest.raises(Conflict, match="is deleting"):
        await world.service.update("web", wish("other"))


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0])
async def test_a_clock_that_jumps_neither_fails_a_revision_nor_stops_a_drain(jump_s: float) -> None:
    world = World(hosts=2)
    service = await running(world, least=2)
    await world.service.update("web", wish("newer", least=2))
    await world.run(1)
    world.clock.jumped_s = jump_s
    await world.run(4)
    world.restart()
    await world.run(30)
    service = await world.now(service)
    assert (service.state, service.revision) == (S.RUNNING, 2)
    assert {r.revision for r in world.ledger.of(service.id)} == {2}


async def test_logs_come_from_the_host_of_the_replica() -> None:
    world = World()
    service = await running(world, least=1)
    replica_id, text = await world.loop.logs(service, "", 100)
    assert text == f"{replica_id} said this"
    ran = await world.loop.execute(service, "", ("ls", "-l"), 5)
    assert (ran[1].exit_code, ran[1].output) == (3, f"{ran[0]}: ls -l")
    with pytest.raises(Gone, match="no replica r-none"):
        await world.loop.execute(service, "r-none", ("ls",), 5)
    with pytest.raises(Invalid):
        await world.loop.execute(service, "", (), 5)
    with pytest.raises(Gone, match="no logs of r-none"):
        await world.loop.logs(service, "r-none", 100)


@pytest.mark.parametrize("seed", range(12))
async def test_a_storm_ends_with_what_was_wanted(seed: int) -> None:
    """Updates, notices, losses, silences and restarts in any order: slots are kept, and calm restores all."""
    world = World(slots=3, hosts=3, boot_s=2)
    draw = random.Random(seed)
    service = await running(world, least=2)
    world.broken.add("bad")
    for _ in range(30):
        match draw.randrange(8):
            case 0:
                await world.service.update("web", wish(draw.choice(["a", "b", "bad"]), least=2))
            case 1:
                await world.service.scale("web", draw.choice([None, 2, 4, 8]))
            case 2:
                alive = [h for h, v in world.hosts.items() if v.alive]
                notice(world, draw.choice(alive), draw.choice([3, 20, 60]))
            case 3:
                alive = [h for h, v in world.hosts.items() if v.alive]
                world.hosts[draw.choice(alive)].alive = False
            case 4:
                host = draw.choice(list(world.hosts.values()))
                host.connected = not host.connected
            case 5:
                world.restart()
            case _:
                pass
        await world.run(draw.choice([0.5, 1, 3, 6]))
        for host_id in world.hosts:
            assert world.ledger.used(host_id) <= 3, "never more than slots"
    for host in world.hosts.values():
        host.connected = True
    await world.run(120)
    service = await world.now(service)
    assert service.state is S.RUNNING, service.message
    live = world.ledger.of(service.id)
    assert all(r.state is ReplicaState.READY for r in live), [r.state for r in live]
    assert {r.revision for r in live} == {service.revision}
    assert len(live) == service.wanted()
    assert {h for h, draining in members(world, service).items() if not draining} == {
        r.host_id for r in live
    }


async def test_a_host_name_belongs_to_one_service() -> None:
    world = World()

    def named(host: str) -> Wish:
        return msgspec.structs.replace(wish(), endpoint=Endpoint(hosts=(host,)))

    first = await world.service.create("web", named("Shop.example"))
    taken = named("shop.example")
    with pytest.raises(Conflict):
        await world.service.create("other", taken)
    with pytest.raises(Conflict):
        await world.service.create("other", named("web.localhost"))
    assert (await world.service.update(first.id, taken))[0].id == first.id
