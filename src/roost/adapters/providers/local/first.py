"""The first process of an instance: reaps, starts the agent again and again, serves metadata, ends all.

In a PID namespace it is process 1: when it ends, the kernel ends everything else. Otherwise it adopts
orphans as a subreaper and finds its processes by descent and by the mark. Its children are the builder
of the package environment (forked before any thread exists) and the agent; everything else it ever
reaps are orphans. It never judges a task: a dead agent is started again, its tasks run on.
"""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from roost.adapters.providers.local import records
from roost.adapters.providers.local.environment import Builder, BuildError, clean_environ
from roost.adapters.providers.local.processes import MARK, descendants, drain, marked, pids, wake_on
from roost.adapters.providers.local.records import EnvFile, Record
from roost.kit.retry import RetryPolicy
from roost.ports.clock import Clock

TICK_S = 0.5
GRACE_S = 1.0
"""Between SIGTERM and the end, in seconds: a planned end has drained its sessions before."""
AGENT_RETRY = RetryPolicy(first_s=0.1, factor=2.0, ceiling_s=5.0)
BUILD_RETRY = RetryPolicy(first_s=1.0, factor=2.0, ceiling_s=30.0)
STEADY_S = 10.0
"""An agent that lived this long is restarted without a growing delay."""
LOG_LIMIT = 8 << 20


@dataclass(frozen=True, slots=True)
class Setting:
    """What the first process is told by the host process."""

    record: Record
    folder: Path
    """The instance's folder by its true name: hard links do not cross the mount of ``seen_as``."""
    seen_as: Path
    """The same folder as everything on the instance sees it."""
    host_pipe: int
    """Ends when the host process dies."""
    isolated: bool
    agent_argv: tuple[str, ...]
    python: str
    uv: str
    uv_cache: str

    def environ(self, metadata: str) -> dict[str, str]:
        """The environment of the agent, and through it of every task."""
        order, at = self.record.order, self.seen_as
        environ = clean_environ()
        environ.update(
            {
                MARK: order.host_id,
                "ROOST_HOST_ID": order.host_id,
                "ROOST_INSTANCE_DIR": str(at),
                "ROOST_RUN_DIR": self.record.run_dir,
                "ROOST_ENV": str(at / "env"),
                "ROOST_ADDRESS": self.record.address,
                "ROOST_METADATA": metadata,
                "ROOST_PROVIDER": order.offer.provider,
                "ROOST_JOIN_TOKEN": order.join_token,
                "ROOST_LINK_ADDRESS": order.link_address,
                "HOME": str(at / "home"),
                "TMPDIR": str(at / "tmp"),
                "VIRTUAL_ENV": str(at / "env"),
                "PATH": f"{at / 'env' / 'bin'}:{environ.get('PATH', os.defpath)}",
            }
        )
        return environ


Serve = Callable[[Setting], str]
"""Starts the metadata service of the instance and returns its base address."""


class FirstProcess:
    """Runs until told to end or until the host process is gone."""

    def __init__(self, setting: Setting, *, clock: Clock, serve: Serve) -> None:
        self._setting = setting
        self._clock = clock
        self._serve = serve
        self._agent: subprocess.Popen[bytes] | None = None
        self._agent_since = 0.0
        self._agent_due = 0.0
        self._failures = 0
        self._told = False
        self._builder = Builder(
            setting.folder.parent.parent / "images",
            setting.record.order.image,
            python=setting.python,
            uv=setting.uv,
            cache=setting.uv_cache,
        )

    def run(self) -> int:
        """Serve until the end; the status is 0."""
        wakeup = wake_on(signal.SIGCHLD, signal.SIGTERM, on_term=self._tell)
        self._builder.hold()  # until this process ends
        self._fork_builder()
        environ = self._setting.environ(self._serve(self._setting))
        while not self._told:
            if self._agent is None and self._clock.monotonic_s() >= self._agent_due:
                self._start_agent(environ)
            ready, _, _ = select.select([wakeup, self._setting.host_pipe], [], [], self._wait_s())
            if self._setting.host_pipe in ready:  # the host died, and a signal on the way was lost
                self._signal_all(signal.SIGKILL)
                return 1
            drain(wakeup)
            self._reap()
        self._end_all(wakeup)
        return 0

    def _tell(self) -> None:
        self._told = True

    def _wait_s(self) -> float:
        if self._agent is not None:
            return TICK_S
        return min(TICK_S, max(0.0, self._agent_due - self._clock.monotonic_s()))

    def _fork_builder(self) -> None:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                build_environment(self._builder, self._setting.folder, self._clock)
                status = 0
            finally:
                os._exit(status)

    def _start_agent(self, environ: dict[str, str]) -> None:
        log = self._setting.folder / "logs" / "agent.log"
        with _log(log) as output:
            try:
                self._agent = subprocess.Popen(
                    self._setting.agent_argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environ,
                    cwd=self._setting.seen_as / "work",
                    start_new_session=True,
                )
            except OSError as error:
                output.write(f"the agent cannot be started: {error}\n".encode())
                self._agent_ended()
        self._agent_since = self._clock.monotonic_s()

    def _agent_ended(self) -> None:
        now = self._clock.monotonic_s()
        steady = self._agent is not None and now - self._agent_since >= STEADY_S
        self._failures = 1 if steady else self._failures + 1
        self._agent = None
        self._agent_due = now + AGENT_RETRY.delay_s(self._failures)

    def _reap(self) -> None:
        """Collect every ended child: the agent, the builder, and orphans."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if self._agent is not None and pid == self._agent.pid:
                    self._agent.returncode = os.waitstatus_to_exitcode(status)
                    code = self._agent.returncode
                    print(f"agent ended with {code}; starting another", flush=True)
                    self._agent_ended()

    def _end_all(self, wakeup: int) -> None:
        """SIGTERM to all, a short grace, SIGKILL."""
        until = self._clock.monotonic_s() + GRACE_S
        self._signal_all(signal.SIGTERM)
        while self._reap_rest() and self._clock.monotonic_s() < until:
            select.select([wakeup], [], [], 0.05)
            drain(wakeup)
        while self._signal_all(signal.SIGKILL):
            select.select([wakeup], [], [], 0.01)
            drain(wakeup)
            self._reap_rest()

    def _reap_rest(self) -> bool:
        """Whether children are left: every process of the instance is one, sooner or later."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return bool(self._others())
        return True

    def _others(self) -> list[int]:
        """Processes of the instance besides this one."""
        own, outside = os.getpid(), os.getppid()
        if self._setting.isolated:
            return sorted(pids() - {own})
        found = set(marked(self._setting.record.host_id)) | descendants(own)
        return sorted(found - {own, outside})

    def _signal_all(self, number: signal.Signals) -> bool:
        others = self._others()
        for pid in others:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        return bool(others)


def build_environment(builder: Builder, folder: Path, clock: Clock) -> None:
    """Make the instance's package environment, again and again until it stands; says how far it is."""
    began = clock.monotonic_s()

    def say(detail: str, *, ready: bool = False) -> None:
        seconds = round(clock.monotonic_s() - began, 3)
        records.write(folder / "env.json", EnvFile(ready=ready, detail=detail, seconds=seconds))
        print(f"environment: {detail}", flush=True)

    attempt = 0
    while True:
        try:
            builder.make(folder / "env", say)
        except (BuildError, OSError) as error:
            attempt += 1
            delay_s = BUILD_RETRY.delay_s(attempt)
            say(f"{error}; next attempt in {delay_s:.0f} s")
            select.select([], [], [], delay_s)
        else:
            say("in place", ready=True)
            return


def _log(path: Path) -> IO[bytes]:
    """The log of the agent, begun anew when it has become long."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_suffix(".log.1"))
    return path.open("ab")
