"""Run as a program by ``test_frames``, with any Python: generators, coroutines and async generators stored,
opened and gone on with, beside a twin left alone. Its own ``__main__`` is the notebook."""

import gc
import inspect
import pickle
import sys
import threading
import time
import traceback
import types
import warnings
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from roost.runtime.kernel.frames import culprit
from roost.runtime.kernel.kinds import Refusal
from roost.runtime.kernel.naming import Singletons
from roost.runtime.kernel.pickling import Surroundings, dump
from roost.runtime.kernel.reach import Walker, group

AROUND = Surroundings("/nowhere", globals(), Singletons(), None, {})


def moved(value: Any) -> Any:
    done = dump(value, AROUND, in_band=True)
    return pickle.loads(done.content, buffers=done.buffers)


def nested(n: int) -> Generator[Any, Any, Any]:
    total = 0
    for i in range(n):
        for j in range(i):
            got = yield (i, j, total)
            total += got or 0
    return total


def delegating(n: int) -> Generator[Any, Any, Any]:
    found = yield from nested(n)
    yield ("end", found)


def calling(n: int) -> Generator[Any, Any, Any]:
    # An empty slot lies on the stack below the callable.
    for i in range(n):
        print(i, max((yield i) or 0, 3), end="")
        yield max(i, *[(yield "x") or 1])


def handling(n: int) -> Generator[Any, Any, Any]:
    for i in range(n):
        try:
            if i % 2:
                raise KeyError(i)
            yield i
        except KeyError as error:
            got = yield ("handling", error.args)
            try:
                raise ValueError(got)
            except ValueError:
                inner: Any = sys.exception()
                yield ("inner", repr(inner), repr(inner.__context__))
            yield repr(sys.exception())
        finally:
            yield "finally"


def unwinding() -> Generator[Any, Any, Any]:
    try:
        yield 1
        raise LookupError("it")
    finally:
        yield "owed"
        yield "owed too"


def closing(start: int) -> Generator[Any, Any, Any]:
    total = start

    def add(n: int) -> int:
        nonlocal total
        total += n
        return total

    while total < 20:
        yield add((yield total) or 1)


def starred(*values: int, k: int = 2, **more: int) -> Generator[Any, Any, Any]:
    for value in values:
        yield value * k
    yield more


@contextmanager
def managed() -> Generator[int, None, None]:
    yield 5


def within() -> Generator[Any, Any, Any]:
    with managed() as value:
        yield value
        yield value + 1


MAKERS: list[Callable[[], Any]] = [
    lambda: nested(4),
    lambda: delegating(4),
    lambda: calling(3),
    lambda: handling(4),
    unwinding,
    lambda: closing(3),
    lambda: starred(1, 2, z=3),
    within,
    lambda: (a * b for a in range(3) for b in [a, 2] if a),
]


def advance(generator: Any, sent: Any) -> Any:
    try:
        return generator.send(sent)
    except BaseException as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)][1:]
        # An exception that was being handled has left its traceback behind.
        return type(error), error.args, lines if type(error) is not LookupError else []


def trial_goes_on_from_everywhere() -> None:
    for make in MAKERS:
        for again in (1, 3):
            for steps in range(12):
                one, twin = make(), make()
                for step in range(steps):
                    assert advance(one, step or None) == advance(twin, step or None)
                for _ in range(again):
                    one = moved(one)
                _alike(one, twin)
                for step in range(14):
                    sent = step if steps or step else None
                    found, expected = advance(one, sent), advance(twin, sent)
                    assert found == expected, (make, again, steps, step, found, expected)


def _alike(one: Any, twin: Any) -> None:
    assert inspect.getgeneratorstate(one) == inspect.getgeneratorstate(twin)
    assert (one.__name__, one.__qualname__) == (twin.__name__, twin.__qualname__)
    assert one.gi_code == twin.gi_code
    assert (one.gi_frame is None) == (twin.gi_frame is None)
    if one.gi_frame is not None:
        assert one.gi_frame.f_lineno == twin.gi_frame.f_lineno
        assert one.gi_frame.f_lasti == twin.gi_frame.f_lasti


def trial_shared_and_recursive() -> None:
    log: list[Any] = []

    def writer(shared: list[Any]) -> Generator[Any, Any, Any]:
        while True:
            shared.append(len(shared))
            yield shared

    one, two = writer(log), writer(log)
    next(one)
    box = {"one": one, "two": [two, one]}
    found, back = moved([box, log])
    assert found["two"][1] is found["one"]
    assert next(found["one"]) is back and next(found["two"][0]) is back
    assert back == [0, 1, 2] and log == [0]


def trial_refers_to_itself() -> None:
    def own(box: list[Any]) -> Generator[Any, Any, Any]:
        yield "begun"
        yield box

    for steps in (0, 1):
        box: list[Any] = []
        one = own(box)
        box.append(one)
        for _ in range(steps):
            next(one)
        found = moved(one)
        assert list(found)[-1][0] is found
        [found] = moved(box)
        assert list(found)[-1][0] is found


def trial_closure_holds_the_generator() -> None:
    def make() -> Any:
        def inside() -> Generator[Any, Any, Any]:
            while True:
                yield generator

        generator = inside()
        return generator

    for steps in (0, 1):
        one = make()
        for _ in range(steps):
            next(one)
        found = moved(one)
        assert next(found) is found


def trial_closure_is_shared() -> None:
    def make() -> Any:
        count = 0

        def inside() -> Generator[Any, Any, Any]:
            while True:
                yield count

        def bump() -> None:
            nonlocal count
            count += 1

        return inside(), bump

    one, bump = make()
    next(one)
    found, again = moved((one, bump))
    again()
    again()
    assert next(found) == 2 and next(one) == 0


def deep(n: int) -> Generator[Any, Any, Any]:
    if n:
        yield from deep(n - 1)
    else:
        yield 1
    yield n


def trial_ten_thousand_deep() -> None:
    small = deep(150)
    next(small)
    found = moved(small)
    assert list(found) == list(small) == list(range(151))

    former = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    threading.stack_size(1 << 30)
    begun = time.perf_counter()
    thread = threading.Thread(target=_deep, args=(10_000, former))
    thread.start()
    thread.join()
    sys.setrecursionlimit(former)
    found = RESULT[0]
    assert found == list(range(5))
    print(f"   10,000 deep: {time.perf_counter() - begun:.2f} s")


RESULT: list[Any] = []


def _deep(n: int, limit: int) -> None:
    one = deep(n)
    next(one)
    sys.setrecursionlimit(limit)
    other = moved(one)
    sys.setrecursionlimit(100_000)
    RESULT.append([next(other) for _ in range(5)])


def trial_chains() -> None:
    outer: Any = delegating(4)
    next(outer)
    inner = outer.gi_yieldfrom
    for order in ((outer, inner), (inner, outer)):
        pair = dict(zip("ab" if order[0] is outer else "ba", moved(order), strict=True))
        assert pair["a"].gi_yieldfrom is pair["b"]
        assert [*pair["a"]][-1][0] == "end"
        assert list(pair["b"]) == []


@types.coroutine
def pause(value: Any) -> Generator[Any, Any, Any]:
    return (yield value)


async def awaiting(n: int) -> Any:
    total = 0
    for i in range(n):
        total += max(await pause(i), await waiting_below(i))
        async with Managed(total) as managed_one:
            total += await pause(managed_one.total)
    return total


async def waiting_below(i: int) -> int:
    try:
        return int(await pause(("below", i)))
    except TypeError:
        await pause("handled")
        return -1


class Managed:
    def __init__(self, total: int) -> None:
        self.total = total

    async def __aenter__(self) -> "Managed":
        await pause("enter")
        return self

    async def __aexit__(self, *_: Any) -> None:
        await pause("exit")


async def counting(n: int) -> Any:
    for i in range(n):
        got = yield i
        if got:
            await pause(("sent", got))


async def over(n: int) -> Any:
    found = [x async for x in counting(n)]
    async for x in counting(n):
        found.append(await pause(x))
        async for y in slow(2):
            found.append(y)
    return found


async def slow(n: int) -> Any:
    for i in range(n):
        await pause("slow")
        yield i


def trial_coroutines() -> None:
    makers: list[Callable[[], Any]] = [lambda: awaiting(3), lambda: over(3)]
    for make in makers:
        for steps in range(14):
            one, twin = make(), make()
            for step in range(steps):
                assert advance(one, step or None) == advance(twin, step or None)
            one = moved(moved(one))
            assert inspect.getcoroutinestate(one) == inspect.getcoroutinestate(twin)
            assert type(one.cr_await) is type(twin.cr_await)
            for step in range(20):
                # Inside an async generator only None can be sent after a move, as event loops do.
                assert (a := advance(one, None)) == (b := advance(twin, None)), (steps, step, a, b)
            one.close()
            twin.close()


def drive(awaitable: Any) -> Any:
    try:
        while True:
            awaitable.send(None)
    except StopIteration as stop:
        return stop.value
    except StopAsyncIteration:
        return "end"


def trial_async_generators() -> None:
    for steps in range(6):
        one, twin = counting(3), counting(3)
        for _ in range(steps):
            assert drive(one.__anext__()) == drive(twin.__anext__())
        one = moved(moved(one))
        assert (one.ag_frame is None) == (twin.ag_frame is None)
        if 0 < steps < 4:
            assert drive(one.asend("x")) == drive(twin.asend("x"))
        for _ in range(4):
            assert drive(one.__anext__()) == drive(twin.__anext__())


def refused(value: Any) -> Refusal:
    try:
        dump(value, AROUND, in_band=True)
    except Refusal as refusal:
        return refusal
    raise AssertionError("it was stored")


def trial_refusals() -> None:
    def running() -> Generator[Any, Any, Any]:
        seen.append(refused(generator).reason)
        yield 1

    seen: list[str] = []
    generator = running()
    next(generator)
    assert "running" in seen[0]

    def holding() -> Generator[Any, Any, Any]:
        frame = sys._getframe()
        yield frame

    one = holding()
    next(one)

    def fails(value: Any) -> BaseException | None:
        try:
            dump(value, AROUND, in_band=True)
        except Exception as error:
            return error
        return None

    found = culprit(one, fails)
    assert isinstance(found, Refusal) and "local 'frame'" in found.reason, found


def trial_groups() -> None:
    shared: list[Any] = []
    first = closing(1)
    next(first)

    def user(box: list[Any]) -> Generator[Any, Any, Any]:
        yield box
        yield nested

    names: dict[str, Any] = {"a": user(shared), "b": shared, "c": first, "d": [3]}
    next(names["a"])
    walker = Walker(globals(), Singletons(), ())
    reaches = {name: walker.reach(value) for name, value in names.items()}
    assert group(reaches) == [("a", "b"), ("c",), ("d",)]
    assert "nested" in reaches["a"].names


def trial_nothing_is_leaked() -> None:
    class Token:
        pass

    def holding(token: Any) -> Generator[Any, Any, Any]:
        for _ in range(3):
            yield max(1, *[(yield token)])

    gc.collect()  # a generator that holds its own frame links it to whatever runs when it is collected
    token = Token()
    one = holding(token)
    next(one)
    before = sys.getrefcount(token)
    for _ in range(50):
        found = moved([one])[0]
        [kept] = {
            id(one): one for one in gc.get_referents(found) if "Token" in str(type(one))
        }.values()
        reference = weakref.ref(kept)
        del found, kept
        assert reference() is None
    assert sys.getrefcount(token) == before


if __name__ == "__main__":
    sys.unraisablehook = lambda _: None  # generators here ignore GeneratorExit
    warnings.simplefilter("ignore")
    for name, trial in list(globals().items()):
        if name.startswith("trial_"):
            trial()
            print("ok", name, flush=True)
