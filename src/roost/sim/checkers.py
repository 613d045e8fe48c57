"""What must hold at every moment, whatever goes wrong. Each checker is one function over the scene.

A checker reads the truth (machines, kernels, rows) directly, never through the calls that may fail, and
only says what is wrong: it repairs nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from roost.fleet.groups.model import PREFIX, Member
from roost.fleet.model import Claim, ClaimState, Instance, InstanceState
from roost.jobs.model import Job
from roost.metering.plan import reconcile
from roost.notebooks.model import Phase, Session, SessionState
from roost.ports.provider import LedgerLine
from roost.ports.store import Store, Table
from roost.sim import groups
from roost.sim.edge import SimEdge
from roost.sim.groups import GroupScene
from roost.sim.hosts import Hub
from roost.sim.kernels import SimKernel
from roost.sim.provider import Machine, SimProvider
from roost.sim.user import TypingUser
from roost.sim.world import World

GRACE_S = 300.0
"""How long an instance may live unwanted, and a closed meter may differ from the ledger: the time that
crashes, cuts and lost replies may cost."""


@dataclass(slots=True)
class Rows:
    """The durable truth at one moment."""

    sessions: dict[str, Session]
    jobs: dict[str, Job]
    claims: dict[str, Claim]
    instances: dict[str, Instance]
    members: dict[str, Member]


@dataclass(slots=True)
class Scene:
    """Everything a checker may look at, and what it remembers."""

    world: World
    hub: Hub
    edge: SimEdge
    providers: Mapping[str, SimProvider]
    store: Store
    users: dict[str, TypingUser] = field(default_factory=dict)
    accepted_epoch: dict[str, int] = field(default_factory=dict)
    """Highest epoch at which a cell of the session was accepted."""
    kernel_of: dict[tuple[str, int], SimKernel] = field(default_factory=dict)
    """The kernel that was started at (session, epoch)."""
    epochs: dict[str, int] = field(default_factory=dict)
    """Highest epoch seen, by what has it."""
    durable: dict[str, int] = field(default_factory=dict)
    """Cells in the checkpoint that the session's row names."""
    floor: dict[tuple[str, int], int] = field(default_factory=dict)
    """Cells that were durable when (session, epoch) was reserved."""
    unwanted_since: dict[str, float] = field(default_factory=dict)

    # --- told by the world -------------------------------------------------------------------------

    def accepted(self, session_id: str, kernel: SimKernel) -> None:
        """A kernel took a cell through the route."""
        highest = self.accepted_epoch.get(session_id, 0)
        if kernel.epoch < highest:
            self.world.violate(
                "one kernel accepts work",
                f"{session_id}: epoch {kernel.epoch} took a cell after epoch {highest} had",
            )
        self.accepted_epoch[session_id] = max(highest, kernel.epoch)

    def started(self, kernel: SimKernel) -> None:
        """A kernel is about to accept work."""
        key = (kernel.session_id, kernel.epoch)
        if self.kernel_of.setdefault(key, kernel) is not kernel:
            self.world.violate(
                "one kernel accepts work",
                f"{kernel.session_id}: a second kernel at epoch {kernel.epoch}",
            )
        floor = self.floor.get(key, 0)
        if kernel.restored < floor:
            self.world.violate(
                "acknowledged state is durable or live",
                f"{kernel.session_id}: epoch {kernel.epoch} began with {kernel.restored} cells, "
                f"{floor} were durable",
            )
        user = self.users.get(kernel.session_id)
        if user is not None and user.acknowledged > kernel.restored:
            self.world.tally["cells run again"] += user.acknowledged - kernel.restored

    # --- reading -----------------------------------------------------------------------------------

    async def sessions(self) -> dict[str, Session]:
        """All sessions by id."""
        found = await Table(self.store, "session", Session).find()
        return {s.value.id: s.value for s in found}

    async def rows(self) -> Rows:
        """All rows that checkers read."""
        jobs = await Table(self.store, "job", Job).find()
        claims = await Table(self.store, "claim", Claim).find()
        instances = await Table(self.store, "instance", Instance).find()
        members = await Table(self.store, "member", Member).find()
        return Rows(
            sessions=await self.sessions(),
            jobs={j.value.id: j.value for j in jobs},
            claims={c.value.id: c.value for c in claims},
            instances={i.value.id: i.value for i in instances},
            members={m.value.id: m.value for m in members},
        )

    def machines(self) -> list[Machine]:
        """Every machine that exists, over all clouds."""
        return [m for provider in self.providers.values() for m in provider.live()]

    async def ledger(self) -> list[LedgerLine]:
        """What all clouds charge for."""
        return [line for p in self.providers.values() for line in await p.ledger()]


def one_kernel_accepts_work(scene: Scene, sessions: Mapping[str, Session]) -> Iterator[str]:
    """Of a session's kernels only the one the route points to, at its newest epoch, has an open stream."""
    for user in scene.users.values():
        stream = user.stream
        if stream is None or not stream.open or not stream.kernel.accepts:
            continue
        route = scene.edge.route(user.session_id)
        session = sessions.get(user.session_id)
        if route is not None and stream.kernel.epoch > route.epoch:
            yield f"{user.session_id}: a kernel ahead of its route works"
        if session is not None and stream.kernel.epoch > session.epoch:
            yield f"{user.session_id}: a kernel works at an epoch that was never reserved"


def acknowledged_state_is_durable_or_live(
    scene: Scene, sessions: Mapping[str, Session]
) -> Iterator[str]:
    """No cell is skipped, none is run twice in one lineage, and a finished capture has all of them."""
    for session in sessions.values():
        durable = 0
        if session.checkpoint is not None:
            durable = len(scene.world.blobs[session.checkpoint.digest])
        scene.durable[session.id] = durable
        scene.floor.setdefault((session.id, session.epoch), durable)
        user = scene.users.get(session.id)
        move = session.move
        if move is not None and move.phase is Phase.RESTORING and move.captured:
            left = scene.kernel_of.get((session.id, move.from_epoch))
            run = min(len(left.cells) if left else 0, user.acknowledged if user else 0)
            if run > durable:
                yield f"{session.id}: captured {durable} cells, {run} of that kernel were answered"
        for kernel in scene.hub.kernels(session.id):
            if kernel.cells and kernel.cells[-1] != len(kernel.cells) - 1:
                last = kernel.cells[-8:]
                yield f"{session.id}: cell {len(kernel.cells) - 1} at epoch {kernel.epoch} is {last}"


def epochs_only_rise(scene: Scene, sessions: Mapping[str, Session]) -> Iterator[str]:
    """Of sessions, routes, and what hosts run."""
    seen = [(f"session {s.id}", s.epoch) for s in sessions.values()]
    seen += [(f"route {r.name}", r.epoch) for r in scene.edge.table.by_name.values()]
    for host in scene.hub.hosts.values():
        seen += [(f"{host.id} {k.session_id}", k.epoch) for k in host.kernels.values()]
    for name, epoch in seen:
        if epoch < scene.epochs.get(name, 0):
            yield f"{name} went from epoch {scene.epochs[name]} back to {epoch}"
        scene.epochs[name] = epoch


def live_instances_are_wanted(scene: Scene, rows: Rows) -> Iterator[str]:
    """Each instance that exists is used by a session that wants it, or is being ended (within a grace).

    And the other way round: none that somebody wants is ended by us.
    """
    now_s = scene.world.now_s()
    unwanted = {}
    for machine in scene.machines():
        why = _unwanted(machine, rows)
        if why:
            since_s = scene.unwanted_since.get(machine.provider_id, now_s)
            unwanted[machine.provider_id] = since_s
            if now_s - since_s > GRACE_S:
                yield f"{machine.provider_id} ({machine.order.host_id}) lives on: {why}"
    scene.unwanted_since = unwanted
    for instance in rows.instances.values():
        if instance.state is InstanceState.LOST and instance.ended_reason == "terminated":
            yield f"{instance.id} was wanted, and ended by ourselves"


def _unwanted(machine: Machine, rows: Rows) -> str:
    """Why nobody wants ``machine``; empty when somebody does."""
    instance = rows.instances.get(machine.order.host_id)
    if instance is None or instance.ended:
        return "no row knows it" if instance is None else f"its row is {instance.state}"
    claim = rows.claims.get(instance.parent)
    if claim is None or claim.state not in (ClaimState.WANTED, ClaimState.HELD):
        return f"its claim is {claim.state if claim else 'unknown'}"
    if claim.parent.startswith(PREFIX):
        return groups.unwanted(claim, rows.members)
    job = rows.jobs.get(claim.parent)
    if job is not None:
        return "" if claim.id in job.claims else "its job has forgotten the claim"
    session = rows.sessions.get(claim.parent)
    if session is None or session.state is SessionState.STOPPED:
        return "its session has ended"
    if claim.id not in (session.claim_id, session.standby_claim_id, *session.old_claims):
        return "its session has forgotten the claim"
    if claim.id == session.standby_claim_id and not session.standby and session.move is None:
        return "its session wants no standby host"
    return ""


async def metered_equals_ledger(scene: Scene, *, settled: bool) -> list[str]:
    """Our lines and the providers' ledgers agree, to the nano-dollar.

    While things go wrong (``settled`` False) only for machines that ended more than a grace ago.
    """
    rows, ledger = await scene.rows(), await scene.ledger()
    now_s = scene.world.now_s()
    recent = {
        line.host_id
        for line in ledger
        if not settled and (line.ended_s is None or line.ended_s > now_s - GRACE_S)
    }
    differences = reconcile(
        [i for i in rows.instances.values() if i.id not in recent],
        [line for line in ledger if line.host_id not in recent],
        now_s,
    )
    return [
        f"{d.instance_id}: {d.reason}: metered {d.metered_s} s, ledger {d.ledger_s} s"
        for d in differences
    ]


EverySecond = Callable[[Scene, Mapping[str, Session]], Iterator[str]]

EVERY_SECOND: Sequence[tuple[str, EverySecond]] = (
    ("one kernel accepts work", one_kernel_accepts_work),
    ("acknowledged state is durable or live", acknowledged_state_is_durable_or_live),
    ("epochs only rise", epochs_only_rise),
)


async def unsettled(
    scene: Scene, standby_wanted: Mapping[str, bool], grouped: GroupScene
) -> list[str]:
    """What is not yet as it should be once nothing goes wrong any more; empty = everything has settled."""
    rows = await scene.rows()
    missing, hosts = await grouped.unsettled(rows.claims)
    wanted = dict.fromkeys(sorted(hosts), "")
    for session in rows.sessions.values():
        if session.desired == "stopped":
            if session.state is not SessionState.STOPPED:
                missing.append(f"{session.id} is {session.state}, not stopped")
            continue
        if session.state is not SessionState.RUNNING or session.old_claims:
            missing.append(f"{session.id} is {session.state} at epoch {session.epoch}")
        if not scene.users[session.id].served:
            user = scene.users[session.id]
            missing.append(f"{session.id}: {user.acknowledged} of {user.asked} cells answered")
        claims = [session.claim_id]
        claims += [session.standby_claim_id] if standby_wanted[session.id] else []
        for claim_id in claims:
            claim = rows.claims.get(claim_id)
            if claim is None or claim.state is not ClaimState.HELD:
                state = claim.state if claim else "missing"
                missing.append(f"{session.id}: claim {claim_id} is {state}")
            else:
                wanted[claim.instance_id] = claim_id
    live = {machine.order.host_id for machine in scene.machines()}
    missing += [f"{host_id} should be gone" for host_id in sorted(live - wanted.keys())]
    missing += [f"{host_id} should be live" for host_id in sorted(wanted.keys() - live)]
    return missing
