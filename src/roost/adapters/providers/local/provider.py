"""The provider ``local``: instances are host processes on this machine, found again by pid and start time.

Every call first writes what is wanted to the instance's record, then acts; ``instances`` compares the
records with what runs and finishes whatever a crash left half done. Nothing here needs to be alive for
an instance to live. It never reads the agents' side and never decides what should exist.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from uv import find_uv_bin

from roost.adapters.providers.local import cgroups, records
from roost.adapters.providers.local.environment import uv_cache
from roost.adapters.providers.local.host import erase
from roost.adapters.providers.local.processes import MARK, end, running, sweep
from roost.adapters.providers.local.records import EndFile, HostFile, Ledger, Record
from roost.ports.clock import Clock
from roost.ports.errors import Conflict, Denied, Gone, Invalid, NoCapacity, Retry
from roost.ports.provider import (
    Capabilities,
    Conditions,
    InstanceState,
    LedgerLine,
    Order,
    ProviderInstance,
)
from roost.ports.values import Notice, NoticeKind

KEEP_ENDED_S = 3600.0
"""Ended instances are listed this long."""
KEEP_LEDGER_S = 45 * 86400.0
"""Records and ledgers of ended instances are deleted after this."""
END_LIMIT_S = 6.0
"""A host that was told to end and has not is killed after this."""
MARKET = "market"
"""Source of the notices of a market that is played."""
_HOST_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class LocalProvider:
    """Implements ``ports.provider.Provider`` on this machine.

    ``Denied`` at once when the state directory cannot be written.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        clock: Clock,
        agent_argv: Sequence[str] = (sys.executable, "-m", "roost.main.agent"),
        host_argv: Sequence[str] = (sys.executable, "-m", "roost.main.host"),
        image_python: str = sys.executable,
        uv: str = "",
        max_instances: int = 32,
        force_mark: bool = False,
        conditions: Conditions | None = None,
    ) -> None:
        """``conditions``: the market it plays; without one nothing is refused or taken."""
        self._clock = clock
        self._folder = Path(state_dir).absolute() / "instances"
        self._agent_argv = tuple(agent_argv)
        self._host_argv = tuple(host_argv)
        self._python = image_python
        self._uv = uv or find_uv_bin()
        self._max = max_instances
        self._force_mark = force_mark
        self._conditions = conditions
        self._records: dict[str, Record] = {}
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / "self").mkdir(mode=0o700, exist_ok=True)
            probe = self._folder / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise Denied(
                f"instances cannot be kept in {self._folder}: {error.strerror}",
                hint="make it writable or set ROOST_STATE_DIR to another folder",
            ) from error
        for path in self._folder.glob("*/instance.json"):
            found = records.read(path, Record)
            if found is not None:
                self._records[found.host_id] = found

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(can_stop=True, billing_step_s=1, minimum_s=0)

    async def launch(self, order: Order) -> ProviderInstance:
        for known in self._records.values():
            if known.order.token == order.token:
                await self._settle(known)
                return self._seen(known)
        if not _HOST_ID.fullmatch(order.host_id) or order.host_id == "self":
            raise Invalid(f"{order.host_id!r} cannot name an instance", hint="use a-z, 0-9 and -")
        if order.host_id in self._records:
            raise Conflict(f"{order.host_id} was launched with another token")
        self._need_capacity(order)
        live = [record for record in self._records.values() if record.ended_s is None]
        if len(live) >= self._max:
            raise NoCapacity(
                f"this machine has its {self._max} instances already", offer=order.offer.key
            )
        record = Record(
            order=order,
            address=_free_address(order.host_id, {record.address for record in live}),
            run_dir=_run_dir(self._folder / order.host_id),
            launched_s=self._clock.now_s(),
        )
        with _disk_errors():
            (self._folder / order.host_id).mkdir(mode=0o700, exist_ok=True)
            self._save(record)
            self._open_interval(record)
            self._boot_if_absent(record)
        return self._seen(record)

    async def terminate(self, provider_id: str) -> None:
        record = self._record(provider_id)
        if record.ended_s is not None:
            return
        record = self._want(record, "terminated")
        await self._end_host(record)
        await self._settle(record)

    async def stop(self, provider_id: str) -> None:
        record = self._running_record(provider_id)
        if record.stopped:
            return
        record = self._want(record, "stopped")
        await self._end_host(record)
        await self._settle(record)

    async def start(self, provider_id: str) -> None:
        record = self._running_record(provider_id)
        if record.stopped:
            folder = self._folder / record.host_id
            for name in ("notice.json", "end.json", "env.json", "host.json"):
                (folder / name).unlink(missing_ok=True)
            record = msgspec.structs.replace(
                record, wanted="running", stopped=False, boot=record.boot + 1
            )
            with _disk_errors():
                self._save(record)
                self._open_interval(record)
        self._boot_if_absent(record)

    async def instances(self) -> list[ProviderInstance]:
        for record in list(self._records.values()):
            await self._settle(record)
            await self._play(record)
        now = self._clock.now_s()
        await self._prune(now)
        return [
            self._seen(record)
            for _, record in sorted(self._records.items())
            if record.ended_s is None or now - record.ended_s <= KEEP_ENDED_S
        ]

    async def ledger(self) -> list[LedgerLine]:
        lines: list[LedgerLine] = []
        for host_id in sorted(self._records):
            lines += Ledger(self._folder / host_id).lines(host_id)
        return lines

    async def interrupt(self, provider_id: str, notice: Notice) -> None:
        record = self._running_record(provider_id)
        if record.stopped:
            raise Gone(f"{provider_id} is stopped")
        if notice.kind is not NoticeKind.REBALANCE and notice.deadline_s is None:
            deadline = self._clock.now_s() + record.order.offer.notice_s
            notice = msgspec.structs.replace(notice, deadline_s=deadline)
        folder = self._folder / record.host_id
        known = records.notices(folder)
        if notice not in known:
            records.write(folder / "notice.json", (*known, notice))

    async def kill(self, provider_id: str) -> None:
        record = self._record(provider_id)
        if record.ended_s is not None:
            return
        self._signal_host(record, signal.SIGKILL)
        for _ in range(200):
            if not self._alive(record):
                break
            await asyncio.sleep(0.01)
        await self._settle(record)

    # --- the market it plays -----------------------------------------------------------------------

    def _need_capacity(self, order: Order) -> None:
        if self._conditions is None or not self._conditions.refuses(
            order.offer, self._clock.now_s()
        ):
            return
        raise NoCapacity(f"{order.offer.key} has no capacity now", offer=order.offer.key)

    async def _play(self, record: Record) -> None:
        """Its notice, when the market takes the pool; at once when that is past."""
        record = self._record(record.host_id)
        if self._conditions is None or record.ended_s is not None or record.stopped:
            return
        offer, now_s = record.order.offer, self._clock.now_s()
        taken_s = self._conditions.taken_at_s(offer, record.launched_s)
        if taken_s is None or now_s < taken_s - offer.notice_s:
            return
        if any(n.source == MARKET for n in records.notices(self._folder / record.host_id)):
            return
        notice = Notice(
            kind=NoticeKind.INTERRUPTION,
            seen_s=now_s,
            deadline_s=max(taken_s, now_s),
            source=MARKET,
            detail="the recorded market takes the pool",
        )
        await self.interrupt(record.host_id, notice)

    # --- one instance ------------------------------------------------------------------------------

    def _record(self, provider_id: str) -> Record:
        record = self._records.get(provider_id)
        if record is None:
            raise Gone(f"no instance is called {provider_id}")
        return record

    def _running_record(self, provider_id: str) -> Record:
        record = self._record(provider_id)
        if record.ended_s is not None:
            raise Gone(f"{provider_id} has ended: {record.reason}")
        return record

    def _save(self, record: Record) -> None:
        records.write(self._folder / record.host_id / "instance.json", record, durable=True)
        self._records[record.host_id] = record

    def _want(self, record: Record, wanted: str) -> Record:
        """Write the intent before the act."""
        record = msgspec.structs.replace(self._record(record.host_id), wanted=wanted)
        with _disk_errors():
            self._save(record)
        return record

    def _open_interval(self, record: Record) -> None:
        at = record.launched_s if record.boot == 1 else self._clock.now_s()
        price = record.order.offer.price_usd_hour
        Ledger(self._folder / record.host_id).opened(record.boot, at, price)

    def _host_file(self, record: Record) -> HostFile | None:
        """The registration of this boot's host."""
        found = records.read(self._folder / record.host_id / "host.json", HostFile)
        return found if found is not None and found.boot == record.boot else None

    def _starting(self, record: Record) -> bool:
        """A host that we started and that has not registered yet."""
        process = self._hosts.get(record.host_id)
        return process is not None and process.poll() is None

    def _alive(self, record: Record) -> bool:
        file = self._host_file(record)
        first = file is not None and running(file.first_pid, file.first_ticks)
        host = file is not None and running(file.pid, file.started_ticks)
        return host or first or self._starting(record)

    def _boot_if_absent(self, record: Record) -> None:
        """Start the host process of an instance that is wanted and never had one in this boot."""
        if record.wanted != "running" or record.ended_s is not None or record.stopped:
            return
        if self._host_file(record) is not None or record.host_id in self._hosts:
            return
        folder = self._folder / record.host_id
        argv = [*self._host_argv, "--dir", str(folder), "--python", self._python, "--uv", self._uv]
        argv += ["--uv-cache", uv_cache()]
        if self._force_mark:
            argv.append("--force-mark")
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith("ROOST_")
        }
        environ[MARK] = record.host_id
        self._open_interval(record)
        with (folder / "host.log").open("ab") as log:
            self._hosts[record.host_id] = subprocess.Popen(
                [*argv, "--", *self._agent_argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=folder,
                start_new_session=True,
            )

    def _signal_host(self, record: Record, number: signal.Signals) -> None:
        process = self._hosts.get(record.host_id)
        if process is not None and process.poll() is None:
            process.send_signal(number)
        file = self._host_file(record)
        if file is not None:
            end(file.pid, file.started_ticks, number)
            if number == signal.SIGKILL:
                end(file.first_pid, file.first_ticks)

    async def _end_host(self, record: Record) -> None:
        """SIGTERM until it is gone; SIGKILL after ``END_LIMIT_S``."""
        since = self._clock.monotonic_s()
        self._signal_host(record, signal.SIGTERM)
        while self._alive(record):
            if self._clock.monotonic_s() - since > END_LIMIT_S:
                self._signal_host(record, signal.SIGKILL)
            await asyncio.sleep(0.02)

    async def _settle(self, record: Record) -> None:
        """Make the record agree with what runs: boot what never booted, enter the end of what ended."""
        record = self._record(record.host_id)
        if record.ended_s is not None:
            return
        if record.stopped:
            await self._forget_stopped(record)
            return
        if self._alive(record):
            if record.wanted != "running":  # a crash came between intent and act
                self._signal_host(record, signal.SIGTERM)
            return
        folder = self._folder / record.host_id
        file, said = self._host_file(record), records.read(folder / "end.json", EndFile)
        never_ran = file is None and said is None and record.host_id not in self._hosts
        if never_ran and record.wanted == "running":
            self._boot_if_absent(record)
            return
        process = self._hosts.pop(record.host_id, None)
        if process is not None:
            process.wait()
        at, reason = self._how_it_ended(record, folder, said)
        await asyncio.to_thread(_clean, record, folder, file, reason != "stopped")
        self._enter_end(record, at, reason)

    async def _forget_stopped(self, record: Record) -> None:
        """A stopped instance that is wanted no more loses its disk; its interval is closed already."""
        if record.wanted != "terminated":
            return
        await asyncio.to_thread(_clean, record, self._folder / record.host_id, None, True)
        with _disk_errors():
            self._save(
                msgspec.structs.replace(
                    record, ended_s=self._clock.now_s(), reason="terminated", stopped=False
                )
            )

    def _how_it_ended(
        self, record: Record, folder: Path, said: EndFile | None
    ) -> tuple[float, str]:
        """What the host wrote; if it died first, the last beat of its heart."""
        if said is not None and said.boot == record.boot:
            return said.at_s, said.reason
        reason = record.wanted if record.wanted != "running" else "lost"
        at = self._clock.now_s()
        if reason == "lost":
            with contextlib.suppress(OSError):
                at = max(record.launched_s, (folder / "heartbeat").stat().st_mtime)
        return at, reason

    def _enter_end(self, record: Record, at: float, reason: str) -> None:
        now = self._record(record.host_id)
        if now.ended_s is not None or now.stopped or now.boot != record.boot:
            return  # somebody else settled it while we waited
        if reason == "stopped" and now.wanted == "terminated":
            reason = "terminated"
        with _disk_errors():
            Ledger(self._folder / record.host_id).closed(record.boot, at, reason)
            if reason == "stopped":
                self._save(msgspec.structs.replace(now, stopped=True))
            else:
                self._save(msgspec.structs.replace(now, ended_s=at, reason=reason))

    def _seen(self, record: Record) -> ProviderInstance:
        record = self._record(record.host_id)
        file = self._host_file(record)
        state = InstanceState.PENDING
        if record.ended_s is not None:
            state = InstanceState.TERMINATED
        elif record.stopped:
            state = InstanceState.STOPPED
        elif file is not None and file.up:
            state = InstanceState.RUNNING
        return ProviderInstance(
            provider_id=record.host_id,
            token=record.order.token,
            host_id=record.host_id,
            state=state,
            address=record.address,
            launched_s=record.launched_s,
            ended_s=record.ended_s,
            reason=record.reason,
        )

    async def _prune(self, now: float) -> None:
        for host_id, record in list(self._records.items()):
            if record.ended_s is not None and now - record.ended_s > KEEP_LEDGER_S:
                del self._records[host_id]
                await asyncio.to_thread(shutil.rmtree, self._folder / host_id, True)


def _clean(record: Record, folder: Path, file: HostFile | None, forget: bool) -> None:
    """What the host would have done, had it lived: sweep, cgroups, and the disk if it is not kept."""
    sweep(record.host_id)
    if file is not None:
        cgroups.remove(file.cgroups)
    if forget:
        erase(folder, Path(record.run_dir))


def _free_address(host_id: str, taken: set[str]) -> str:
    """A loopback address in 127.77.0.0/16 that no live instance here has."""
    start = int.from_bytes(hashlib.blake2b(host_id.encode(), digest_size=2).digest(), "big")
    for offset in range(1 << 16):
        number = (start + offset) % (1 << 16)
        address = f"127.77.{number >> 8}.{number & 255}"
        if number & 255 not in (0, 255) and address not in taken:
            return address
    raise NoCapacity("no loopback address is left")


def _run_dir(folder: Path) -> str:
    """A short name that a crash cannot lose: derived from the instance's folder, below /tmp."""
    text = f"{folder}:{os.getuid()}".encode()
    return f"/tmp/rr-{hashlib.blake2b(text, digest_size=6).hexdigest()}"


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """A full disk is worth another try."""
    try:
        yield
    except OSError as error:
        raise Retry(
            f"the state directory cannot be written: {error}", after_s=5.0, hint="free some space"
        ) from error
