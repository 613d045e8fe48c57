"""Run as a program by ``test_frames``, with any Python: futures, tasks and timers stored and gone on with."""

import asyncio
import pickle
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from roost.runtime.kernel import rebuild_tasks, tasks
from roost.runtime.kernel.kinds import Refusal
from roost.runtime.kernel.naming import Singletons
from roost.runtime.kernel.pickling import Surroundings, dump
from roost.runtime.kernel.reach import Walker

AROUND = Surroundings("/nowhere", globals(), Singletons(), None, {})


def moved(value: Any) -> Any:
    """What it would be elsewhere; the tasks that were here go on no more."""
    reach = Walker(globals(), Singletons(), ()).reach(value)
    assert not reach.namespace
    here = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    done = dump(value, AROUND, in_band=True)
    found = pickle.loads(done.content, buffers=done.buffers)
    rebuild_tasks.start()
    for task in here:
        task.cancel()
    return found


async def ticking(ticks: list[int], n: int) -> str:
    for i in range(n):
        ticks.append(i)
        await asyncio.sleep(0.01)
    return "end"


async def trial_sleeping_task() -> None:
    ticks: list[int] = []
    task = asyncio.create_task(ticking(ticks, 10), name="ticker")
    await asyncio.sleep(0.03)
    found, again = moved((task, ticks))
    assert found.get_name() == "ticker" and not found.done()
    assert await found == "end" and again == list(range(10))


async def trial_outcomes() -> None:
    async def fails() -> None:
        raise KeyError("no")

    loop = asyncio.get_running_loop()
    good, bad, gone, open_ = (loop.create_future() for _ in range(4))
    good.set_result([good])
    bad.set_exception(ValueError("b"))
    gone.cancel("why")
    heard: list[Any] = []
    open_.add_done_callback(lambda future: heard.append(future.result()))
    task = asyncio.create_task(fails())
    slept = asyncio.create_task(asyncio.sleep(50))
    await asyncio.sleep(0)
    slept.cancel()
    await asyncio.sleep(0.01)
    good, bad, gone, open_, task, slept, heard = moved((good, bad, gone, open_, task, slept, heard))
    assert good.result()[0] is good and repr(bad.exception()) == "ValueError('b')"
    assert gone.cancelled() and slept.cancelled() and repr(task.exception()) == "KeyError('no')"
    assert isinstance(task, asyncio.Task) and "fails" in repr(task)
    open_.set_result(7)
    await asyncio.sleep(0)
    assert heard == [7] and await open_ == 7


async def trial_queue_event_lock() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    event, lock, seen = asyncio.Event(), asyncio.Lock(), []

    async def worker(n: int) -> None:
        await event.wait()
        while (item := await queue.get()) >= 0:
            async with lock:
                seen.append((n, item))
                await asyncio.sleep(0.001)
            queue.task_done()

    workers = [asyncio.create_task(worker(n)) for n in range(3)]
    await asyncio.sleep(0.01)
    queue, event, workers, seen = moved((queue, event, workers, seen))
    event.set()
    for item in (1, 2, 3, 4):
        queue.put_nowait(item)
    await queue.join()
    await asyncio.sleep(0.01)
    queue, workers, seen = moved((queue, workers, seen))  # now they wait for the queue
    for item in (5, 6, -1, -1, -1):
        queue.put_nowait(item)
    await asyncio.gather(*workers)
    assert sorted(item for _, item in seen) == [1, 2, 3, 4, 5, 6]


async def trial_gather_group_timeout() -> None:
    async def step(n: int) -> int:
        await asyncio.sleep(0.02 * n)
        return n

    async def grouped() -> list[int]:
        async with asyncio.TaskGroup() as group:
            made = [group.create_task(step(n)) for n in (1, 2, 3)]
        return [task.result() for task in made]

    async def patient() -> str:
        try:
            await asyncio.wait_for(asyncio.sleep(100), 0.1)
        except TimeoutError:
            return "timed out"
        return "slept"

    together = asyncio.gather(step(1), step(2))
    group, waits = asyncio.create_task(grouped()), asyncio.create_task(patient())
    chained = asyncio.create_task(asyncio.wait_for(group, 10))
    await asyncio.sleep(0.005)
    together, group, waits, chained = moved([together, group, waits, chained])
    assert await together == [1, 2] and await waits == "timed out"
    assert await group == [1, 2, 3] and await chained == [1, 2, 3]


async def feed() -> Any:
    for i in range(6):
        await asyncio.sleep(0.005)
        yield i


async def trial_async_for_and_retry() -> None:
    async def sink() -> list[int]:
        return [x async for x in feed()]

    async def retry(tries: list[int]) -> str:
        for n in range(4):
            try:
                tries.append(n)
                if n < 3:
                    raise ConnectionError(n)
                return "ok"
            except ConnectionError:
                await asyncio.sleep(0.01)
        return "given up"

    tries: list[int] = []
    found: Any = [asyncio.create_task(sink()), asyncio.create_task(retry(tries)), tries]
    for _ in range(3):
        await asyncio.sleep(0.006)
        found = moved(found)
    assert await found[0] == list(range(6))
    assert await found[1] == "ok" and found[2] == [0, 1, 2, 3]


async def trial_timers() -> None:
    fired, never = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    late, off = loop.call_later(0.05, fired.set), loop.call_later(0.01, never.set)
    off.cancel()
    late, off, fired, never = moved((late, off, fired, never))
    begun = time.monotonic()
    await asyncio.wait_for(fired.wait(), 5)
    assert off.cancelled() and not never.is_set() and time.monotonic() - begun > 0.02


async def trial_refusals() -> None:
    async def threaded() -> None:
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.2)

    async def current() -> None:
        await asyncio.sleep(0)
        _refused(asyncio.current_task())

    task = asyncio.create_task(threaded())
    await asyncio.sleep(0.01)
    assert "thread" in _refused(task)
    await asyncio.create_task(current())
    await task


def _refused(value: Any) -> str:
    try:
        dump(value, AROUND, in_band=True)
    except Refusal as refusal:
        return refusal.reason
    raise AssertionError("it was stored")


async def trial_roots() -> None:
    asyncio.get_running_loop().call_later(60, trial_roots)
    task = asyncio.create_task(ticking([], 100), name="mine")
    assert tasks.live()
    assert [name for name, _ in tasks.roots()] == ["task mine", "timer 1"]
    task.cancel()


async def trial_a_pickle_that_fails_starts_nothing() -> None:
    ticks: list[int] = []
    task = asyncio.create_task(ticking(ticks, 3))
    content = dump([task, ticks], AROUND, in_band=True).content
    found = pickle.loads(content)
    rebuild_tasks.forget()
    await task
    assert found[1] == [] and not found[0].done()


def main(trials: list[tuple[str, Callable[[], Coroutine[Any, Any, None]]]]) -> None:
    for name, trial in trials:
        asyncio.run(trial())
        print("ok", name, flush=True)


if __name__ == "__main__":
    sys.unraisablehook = lambda _: None
    main([(n, t) for n, t in list(globals().items()) if n.startswith("trial_")])
