"""What stored pickles of databases, arrays and views call. Part of the format: only add."""

import contextlib
import ctypes
import importlib
import io
import itertools
import sys
from pathlib import Path
from typing import Any

from roost.runtime.kernel import rebuild
from roost.runtime.kernel.rebuild_files import put_back

# --- sqlite --------------------------------------------------------------------------------------


def closed_connection(cls: type) -> Any:
    """A connection that was closed already."""
    made = cls(":memory:")
    made.close()
    return made


def connection(cls: Any, stores: list[tuple[str, str, bool, Any]], options: dict[str, Any]) -> Any:
    """A connection to the same files, or to memory with the same content."""
    made: Any = None
    for name, path, inside, content in stores:
        place = rebuild.absolute(path) if inside else path or ":memory:"
        if path and content is not None:
            put_back(place, content, writing=False)
        if path and not Path(place).exists():
            raise OSError(f"the database {path} is not there")
        if made is None:
            made = cls(place, **options)
        else:
            made.execute(f'attach ? as "{name}"', (place,))
        if not path and content is not None and len(content):
            made.deserialize(content, name=name)
    return made


def fill_connection(made: Any, state: dict[str, Any]) -> None:
    """Factories, pragmas, adapters and converters."""
    sqlite: Any = importlib.import_module("sqlite3")
    for name, value in state["pragmas"]:
        cursor = made.execute(f"pragma {name}")
        now = cursor.fetchone()
        cursor.close()
        if now is not None and now[0] != value:
            made.execute(f"pragma {name} = {value}").close()
    made.row_factory, made.text_factory = state["row_factory"], state["text_factory"]
    sqlite.adapters.update(state["adapters"])
    sqlite.converters.update(state["converters"])
    if state["dict"]:
        made.__dict__.update(state["dict"])


def cursor(cls: Any, owner: Any) -> Any:
    """A new cursor of the same connection."""
    return cls(owner)


def fill_cursor(made: Any, state: tuple[Any, ...]) -> None:
    """Description, row count and last row as they were, by statements that leave no trace."""
    names, count, last, size, factory = state
    owner = made.connection
    level, owner.isolation_level = owner.isolation_level, None
    try:
        if last or count > 0:
            _pretend(made, last or 0, count)
        if names is not None:
            columns = ", ".join('0 as "' + name.replace('"', '""') + '"' for name in names)
            made.execute(f"select {columns} where 0").fetchall()
    finally:
        owner.isolation_level = level
    made.arraysize, made.row_factory = size, factory


def _pretend(made: Any, last: int, count: int) -> None:
    """Insert ``count`` rows, the last one with this number, into a table that is taken back."""
    number = min(max(count, 1), 100_000)
    made.execute("savepoint roost_cursor")
    made.execute("create temp table roost_cursor(a)")
    made.execute(
        "insert into temp.roost_cursor(rowid) with recursive n(i) as (select ? union all"
        " select i + 1 from n where i < ?) select i from n",
        (last - number + 1, last),
    )
    made.connection.execute("rollback to roost_cursor").close()
    made.connection.execute("release roost_cursor").close()


def row(names: list[str], values: tuple[Any, ...]) -> Any:
    """A row with names."""
    sqlite: Any = importlib.import_module("sqlite3")
    owner = sqlite.connect(":memory:")
    columns = ", ".join('0 as "' + name.replace('"', '""') + '"' for name in names)
    made = sqlite.Row(owner.execute(f"select {columns}"), values)
    owner.close()
    return made


# --- SQLAlchemy ----------------------------------------------------------------------------------


def engine(text: str, short: str, options: dict[str, Any], content: bytes | None) -> Any:
    """An engine to the same place."""
    library: Any = importlib.import_module("sqlalchemy")
    url = library.engine.make_url(text)
    if short:
        url = url.set(database=rebuild.absolute(short))
    made = library.create_engine(url, **options)
    if content:
        held = made.raw_connection()
        held.driver_connection.deserialize(content)
        held.close()
    return made


def listen(made: Any, listeners: list[tuple[str, str, Any]]) -> None:
    """The user's listeners."""
    event: Any = importlib.import_module("sqlalchemy.event")
    for where, name, function in listeners:
        event.listen(made if where == "engine" else made.pool, name, function)


def session(cls: Any, bind: Any, options: dict[str, Any]) -> Any:
    """A session over the same engine."""
    return cls(bind=bind, **options)


def fill_session(made: Any, held: list[Any]) -> None:
    """Its objects."""
    made.add_all(held)


# --- arrays and views ----------------------------------------------------------------------------


def sub_array(
    cls: Any,
    root: Any,
    offset: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    writeable: bool,
) -> Any:
    """An array of a subclass over shared memory; its attributes follow."""
    numpy = sys.modules["numpy"]
    made = numpy.ndarray.__new__(cls, shape, dtype, root, offset, strides)
    if made.flags.writeable and not writeable:
        made.flags.writeable = False
    return made


def set_dict(made: Any, state: dict[str, Any]) -> None:
    """Attributes, without asking the object."""
    made.__dict__.update(state)


def object_view(
    owner: Any, skip: int, shape: tuple[int, ...], strides: tuple[int, ...], writeable: bool
) -> Any:
    """A part of an array of objects."""
    tricks: Any = importlib.import_module("numpy.lib.stride_tricks")
    flat = owner.ravel(order="K")
    made = tricks.as_strided(flat[skip:], shape, strides)
    if made.flags.writeable and not writeable:
        made.flags.writeable = False
    return made


def set_frozen(made: Any, state: Any) -> None:
    """An array that may not be written to."""
    made.__setstate__(state)
    made.flags.writeable = False


def flat_iterator(array: Any, index: int) -> Any:
    """``array.flat``, advanced."""
    made = array.flat
    for _ in itertools.islice(made, index):
        pass
    return made


def blank(kind: Any, bag: Any) -> Any:
    """An archive of numpy before it is filled; ``bag``: the class of its look by attribute."""
    made = kind.__new__(kind)
    made.f = bag and bag(made)
    return made


def fill_arrays(made: Any, state: dict[str, Any]) -> None:
    """Its file and the names in it."""
    vars(made).update(state)


def universal(function: Any, nin: int, nout: int, identity: Any) -> Any:
    """What ``numpy.frompyfunc`` makes."""
    return importlib.import_module("numpy").frompyfunc(function, nin, nout, identity=identity)


def lent(file: io.BytesIO) -> Any:
    """The memory of a file in memory, which cannot change its size while it is shown."""
    return file.getbuffer().obj


def whole(source: Any, readonly: bool) -> memoryview:
    """A memoryview of all of an object."""
    made = memoryview(source)
    return made.toreadonly() if readonly and not made.readonly else made


def part(source: Any, begin: int, size: int, format: str, shape: Any, readonly: bool) -> Any:
    """A memoryview of a part of an object."""
    made: Any = memoryview(source)
    if made.format != "B" or made.ndim != 1:
        made = made.cast("B")
    made = made[begin : begin + size]
    if format != "B" or len(shape) != 1:
        made = made.cast(format, shape)
    return made.toreadonly() if readonly else made


def stepped(source: Any, format: str, first: int, count: int, step: int, readonly: bool) -> Any:
    """A memoryview with a step."""
    made: Any = memoryview(source)
    if made.ndim != 1 or made.format != format:
        made = made.cast("B").cast(format)
    end: int | None = first + count * step
    made = made[first : end if end is not None and end >= 0 else None : step]
    return made.toreadonly() if readonly else made


def released_view() -> memoryview:
    """A memoryview that was released."""
    made = memoryview(b"")
    made.release()
    return made


def chunks_of_text(source: Any, engine_name: Any, options: dict[str, Any], rows: int) -> Any:
    """``pandas.read_csv(..., chunksize=)`` after ``rows`` rows."""
    readers: Any = importlib.import_module("pandas.io.parsers.readers")
    made = readers.TextFileReader(source, engine_name, **options)
    if rows:
        made.read(rows)
    return made


def arrow_stream(content: Any, batch: bool) -> Any:
    """An Arrow table (or its one batch) stored without what its buffers hold besides."""
    ipc: Any = importlib.import_module("pyarrow.ipc")
    with ipc.open_stream(content) as reader:
        return reader.read_next_batch() if batch else reader.read_all()


# --- ctypes --------------------------------------------------------------------------------------


def ctypes_class(metaclass: Any, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Any:
    """A structure whose fields follow."""
    return (metaclass or type(bases[0]))(name, bases, dict(body))


def fill_ctypes_class(cls: Any, state: tuple[dict[str, Any], Any]) -> None:
    """Methods, then the fields."""
    attributes, fields = state
    for name, value in attributes.items():
        setattr(cls, name, value)
    if fields is not None:
        cls._fields_ = fields


def ctypes_array(element: Any, length: int) -> Any:
    """The class of arrays of so many elements."""
    return element * length


def ctypes_pointer_class(target: Any) -> Any:
    """The class of pointers to it."""
    return ctypes.POINTER(target)


def ctypes_function_class(result: Any, arguments: tuple[Any, ...], flags: int) -> Any:
    """The class of C functions of these types."""
    return (
        ctypes.CFUNCTYPE(result, *arguments) if flags & 1 else ctypes.PYFUNCTYPE(result, *arguments)
    )


def ctypes_value(cls: Any, content: bytes) -> Any:
    """A structure or array by its bytes."""
    return cls.from_buffer_copy(content)


def ctypes_part(cls: Any, base: Any, offset: int) -> Any:
    """One that lies in another's memory."""
    return cls.from_buffer(base, offset)


def ctypes_pointer(cls: Any, target: Any) -> Any:
    """A pointer; null without a target."""
    made = cls()
    if target is not None:
        made.contents = target
    return made


def ctypes_library(cls: Any, name: Any, state: dict[str, tuple[Any, Any]]) -> Any:
    """A shared library and the types declared for its functions."""
    made = cls(name)
    for function, (result, arguments) in state.items():
        with contextlib.suppress(AttributeError):
            found = getattr(made, function)
            found.restype = result
            if arguments is not None:
                found.argtypes = arguments
    return made


def ctypes_function(library: Any, name: str) -> Any:
    """A function of a shared library."""
    return getattr(library, name)


def record(base: Any, dtype: Any, offset: int) -> Any:
    """A record that lies in an array."""
    numpy = sys.modules["numpy"]
    return numpy.ndarray.__new__(numpy.ndarray, (), dtype, base, offset)[()]


def block(values: Any, placement: Any, dimensions: int, references: Any) -> Any:
    """A block of a pandas object that shares its memory with others."""
    made = sys.modules["pandas._libs.internals"]._unpickle_block(values, placement, dimensions)
    made.refs = references
    references.add_reference(made)
    return made


def series(kind: Any, made: Any, axis: Any) -> Any:
    """What holds the one block of a series."""
    return kind(made, axis)


def block_references() -> Any:
    """Nobody yet shares a block's memory, see ``block`` and ``share_with_indexes``."""
    return importlib.import_module("pandas._libs.internals").BlockValuesRefs()


def share_with_indexes(made: Any, indexes: list[Any]) -> None:
    """The indexes that have the block's memory."""
    for index in indexes:
        made.add_index_reference(index)
