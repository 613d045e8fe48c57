"""The agent of one host: ``python -m roost.main.agent``, configured by its environment only.

    ROOST_HOST_ID ROOST_JOIN_TOKEN ROOST_LINK_ADDRESS ROOST_INSTANCE_DIR ROOST_RUN_DIR
    ROOST_ENV ROOST_PROVIDER ROOST_METADATA ROOST_ADDRESS

Killed at any moment: keepers and kernels run on and the next agent adopts them.
"""

import asyncio
import logging
import os
import random
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import uvloop

from roost.adapters.clock import SystemClock
from roost.adapters.drivers.docker import DockerDriver
from roost.adapters.drivers.process import ProcessDriver
from roost.adapters.link.blobs import LinkedBlobs
from roost.adapters.link.control import ControlLink, Ticket
from roost.adapters.link.data import DataPool
from roost.adapters.link.identity import Identity
from roost.adapters.link.outbox import Outbox
from roost.adapters.notices import notice_source
from roost.agent.balancer import Balancer
from roost.agent.captures import Captures
from roost.agent.checkpoints import Checkpoints
from roost.agent.environment import Environment
from roost.agent.facts import read_facts
from roost.agent.jobs.host import JobHost
from roost.agent.jobs.run import RunTools
from roost.agent.kernels import KernelStarter
from roost.agent.memory import Memory
from roost.agent.model import Places, Task
from roost.agent.replicas.host import ReplicaHost
from roost.agent.replicas.replica import ReplicaTools
from roost.agent.restore import Restorer
from roost.agent.service import Agent, prepare
from roost.agent.services import Services
from roost.agent.tasks import Tasks
from roost.kit.ids import SystemIds
from roost.ports import wire
from roost.ports.errors import Denied
from roost.ports.keeper import KeeperEvent
from roost.ports.kernels import Checkpoint

log = logging.getLogger("roost.agent")

REFUSED_EXIT = 78
"""EX_CONFIG: control will not have this host; starting again does not help."""
BEAT_SOON_S = 0.02
INSTANCE_MARK = "ROOST_INSTANCE"
"""By which the provider ``local`` sweeps what an ended instance left."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What the host process tells its agent."""

    host_id: str
    join_token: str
    link_address: str
    places: Places
    provider: str
    metadata: str
    address: str
    home: str

    @classmethod
    def from_environment(cls) -> "AgentSettings":
        env = os.environ
        return cls(
            host_id=env["ROOST_HOST_ID"],
            join_token=env["ROOST_JOIN_TOKEN"],
            link_address=env["ROOST_LINK_ADDRESS"],
            places=Places(
                instance=env["ROOST_INSTANCE_DIR"],
                run=env["ROOST_RUN_DIR"],
                environment=env.get("ROOST_ENV", ""),
            ),
            provider=env.get("ROOST_PROVIDER", ""),
            metadata=env.get("ROOST_METADATA", ""),
            address=env.get("ROOST_ADDRESS", "127.0.0.1"),
            home=env.get("HOME", env["ROOST_INSTANCE_DIR"]),
        )


class HostAgent:
    """Every part of one agent, wired."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        host_id, places = settings.host_id, settings.places
        clock = SystemClock()
        own = Path(places.instance, "agent")
        prepare(places)
        self._ticket = Ticket(host_id, settings.join_token, Identity.load(own))
        self._beat_due: asyncio.TimerHandle | None = None
        self.blobs = LinkedBlobs(host_id, tls=self._ticket.tls)
        environment = Environment(places.environment)
        memory = Memory(own / "sessions")
        checkpoints = Checkpoints(
            places=places, blobs=self.blobs, environment=environment, clock=clock
        )
        self.tasks = self._keepers(clock)
        balancer = Balancer(clock.now_s)
        self._containers = containers(settings, clock)
        captures = Captures(checkpoints, memory, self._emit, self._on_durable)
        self.agent = Agent(
            host_id,
            places=places,
            tasks=self.tasks,
            starter=KernelStarter(
                places=places,
                tasks=self.tasks,
                memory=memory,
                restorer=Restorer(places, self.blobs, environment),
                checkpoints=checkpoints,
            ),
            captures=captures,
            memory=memory,
            services=Services(
                places, self.tasks, balancer, address=settings.address, home=settings.home
            ),
            jobs=self._jobs(clock),
            replicas=self._replicas(clock, balancer),
            notices=notice_source(settings.provider, settings.metadata, clock=clock),
            clock=clock,
            emit=self._emit,
            beat=self._beat,
        )
        self.data = DataPool(
            host_id, open_service=self.agent.open, draw=random.random, tls=self._ticket.tls
        )
        self.link = ControlLink(
            address=settings.link_address,
            ticket=self._ticket,
            # Rising from run to run, so that a lost file never makes new events look old.
            outbox=Outbox(own / "outbox", first_seq=int(clock.now_s() * 1000)),
            clock=clock,
            draw=random.random,
            handle=self.agent.handle,
            report=self.agent.report,
            on_welcome=self._on_welcome,
        )

    def _keepers(self, clock: SystemClock) -> Tasks:
        places = self._settings.places
        return Tasks(
            places=places,
            driver=ProcessDriver(Path(places.instance, "agent", "tasks"), clock=clock),
            ids=SystemIds(),
            keeper_argv=keeper_argv(places),
            on_event=self._on_keeper_event,
            on_end=self._on_task_end,
            on_change=self._beat,
        )

    def _jobs(self, clock: SystemClock) -> JobHost:
        places = self._settings.places
        tools = RunTools(
            driver=ProcessDriver(Path(places.instance, "agent", "runs"), clock=clock),
            blobs=self.blobs,
            clock=clock,
            beat=self._beat,
            runner_argv=(sys.executable, "-m", "roost.main.runner"),
            environment=places.environment,
        )
        return JobHost(Path(places.instance, "jobs"), tools)

    def _replicas(self, clock: SystemClock, balancer: Balancer) -> ReplicaHost:
        places = self._settings.places
        tools = ReplicaTools(
            processes=ProcessDriver(Path(places.instance, "agent", "replicas"), clock=clock),
            containers=self._containers,
            blobs=self.blobs,
            clock=clock,
            address=self._settings.address,
            free_port=free_port,
            beat=self._beat,
            environment=places.environment,
            unready=lambda: _unready(places.instance),
        )
        return ReplicaHost(Path(places.instance, "replicas"), tools, balancer)

    async def run(self) -> int:
        """Until SIGTERM (keepers and kernels run on) or until control refuses this host for good."""
        loop = asyncio.get_running_loop()
        await self.agent.start()
        work = asyncio.gather(self.link.run(), self.agent.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, work.cancel)
        try:
            await work
        except Denied as error:
            log.error("control refuses this host: %s", error)
            return REFUSED_EXIT
        except asyncio.CancelledError:
            log.info("told to end; tasks run on")
        finally:
            work.cancel()
            await self.data.close()
            await self.agent.close()
            await self._containers.close()
            self.blobs.close()
        return 0

    # --- plugs ---------------------------------------------------------------------------------

    def _emit(self, body: wire.EventBody) -> None:
        self.link.emit(body)

    def _beat(self) -> None:
        """Report soon; changes close together make one report."""
        if self._beat_due is None:
            loop = asyncio.get_running_loop()
            self._beat_due = loop.call_later(BEAT_SOON_S, self._beat_now)

    def _beat_now(self) -> None:
        self._beat_due = None
        self.link.beat()

    def _on_welcome(self, welcome: wire.Welcome) -> None:
        self.blobs.welcome(welcome.data_addresses, welcome.data_credential)
        self.data.welcome(welcome.data_addresses, welcome.data_credential)

    def _on_keeper_event(self, task: Task, event: KeeperEvent) -> None:
        self.agent.on_keeper_event(task, event)

    def _on_task_end(self, task: Task) -> None:
        self.agent.on_task_end(task)

    async def _on_durable(self, checkpoint: Checkpoint) -> None:
        await self.agent.on_durable(checkpoint)


def free_port() -> int:
    """A TCP port that is free on every address: hosts of one machine share its ports."""
    with socket.create_server(("", 0)) as probe:
        return int(probe.getsockname()[1])


def _unready(instance: str) -> str:
    facts = read_facts(instance)
    return "" if facts.ready else facts.detail or "preparing the environment"


def containers(settings: AgentSettings, clock: SystemClock) -> DockerDriver:
    """Containers of this host. The engine, outside, has other names for what a local instance sees."""
    seen = Path(settings.places.instance)
    mark = os.environ.get(INSTANCE_MARK)
    return DockerDriver(
        settings.host_id,
        clock=clock,
        marks={} if mark is None else {INSTANCE_MARK: mark},
        true_path={str(seen): str(seen.with_name(settings.host_id))} if seen.name == "self" else {},
    )


def keeper_argv(places: Places) -> tuple[str, ...]:
    """How keepers are started; the task's own arguments follow."""
    python = f"{places.environment}/bin/python" if places.environment else sys.executable
    module = (sys.executable, "-m", "roost.main.keeper")
    return (*module, "--run-dir", places.run, "--kernel-python", python)


def main() -> int:
    """Entry point; returns the exit code."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    agent = HostAgent(AgentSettings.from_environment())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(agent.run())


if __name__ == "__main__":
    sys.exit(main())
