"""Arrays, views of memory, and C data: what shares memory still shares it afterwards."""

import ctypes
import gc
import io
import sys
from typing import Any

from roost.runtime.kernel import rebuild_data
from roost.runtime.kernel.files import address_of
from roost.runtime.kernel.naming import dict_of, importable_class, mro_of
from roost.runtime.kernel.refusal import CELL_ADVICE, Handler, Refusal, Storing

COMPACT_BYTES = 64 << 10
"""Arrow slices that keep more than this alive besides are stored alone."""


# --- memory views --------------------------------------------------------------------------------


def reduce_memoryview(_pickler: Storing, value: memoryview) -> Any:
    """A view of the same part of the same object."""
    try:
        source = value.obj
    except ValueError:
        return rebuild_data.released_view, ()
    if source is None:
        raise Refusal("a memoryview of nothing that has a name", CELL_ADVICE)
    whole = memoryview(source)
    try:
        same = whole.nbytes == value.nbytes and value.c_contiguous
        if same and whole.format == value.format and whole.shape == value.shape:
            return rebuild_data.whole, (source, value.readonly)
        return _part(source, whole, value)
    finally:
        whole.release()


def _part(source: Any, whole: memoryview, value: memoryview) -> Any:
    if not whole.c_contiguous:
        raise Refusal("a memoryview of scattered memory", "keep the object and slice it again")
    try:
        whole.cast("B").release()
    except TypeError:
        raise Refusal("a memoryview of a part of an object", CELL_ADVICE) from None
    begin = address_of(value) - address_of(source)
    if value.c_contiguous:
        return rebuild_data.part, (
            source, begin, value.nbytes, value.format, value.shape, value.readonly,
        )  # fmt: skip
    if (
        value.ndim != 1
        or value.strides is None
        or begin % value.itemsize
        or value.strides[0] % value.itemsize
    ):
        raise Refusal("a memoryview of scattered memory", "keep the object and slice it again")
    step = value.strides[0] // value.itemsize
    first = begin // value.itemsize
    return rebuild_data.stepped, (
        source, value.format, first, len(value), step, value.readonly,
    )  # fmt: skip


def reduce_lent(_pickler: Storing, value: Any) -> Any:
    """What ``BytesIO.getbuffer`` shows."""
    return rebuild_data.lent, (gc.get_referents(value)[0],)


# --- numpy ---------------------------------------------------------------------------------------


def reduce_object_array(array: Any) -> Any:
    """An array of objects: a view of another stays one."""
    numpy: Any = sys.modules["numpy"]
    owner = array
    while isinstance(owner.base, numpy.ndarray):
        owner = owner.base
    writeable = bool(array.flags.writeable)
    if owner is array or array.nbytes == 0:
        made = numpy.ndarray.__reduce_ex__(array, 2)
        if writeable:
            return made
        return *made[:2], made[2], None, None, rebuild_data.set_frozen
    skip = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
    plain = type(owner) is numpy.ndarray and owner.dtype == array.dtype
    if not plain or not owner.flags.forc or skip % array.itemsize:
        raise Refusal("a view of a part of an array of objects", "copy it with numpy.array")
    return rebuild_data.object_view, (
        owner, skip // array.itemsize, array.shape, array.strides, writeable,
    )  # fmt: skip


def reduce_flat(_pickler: Storing, value: Any) -> Any:
    """``array.flat`` where it stands."""
    return rebuild_data.flat_iterator, (value.base, value.index)


def reduce_arrays(_pickler: Storing, value: Any) -> Any:
    """What ``numpy.load`` gives for an archive: it goes on with its file."""
    state = {name: one for name, one in vars(value).items() if name != "f"}
    bag = None if value.f is None else type(value.f)
    return rebuild_data.blank, (type(value), bag), state, None, None, rebuild_data.fill_arrays


def reduce_ufunc(_pickler: Storing, value: Any) -> Any:
    """A universal function: by name, or made again of the function that ``frompyfunc`` was given."""
    functions = [one for one in gc.get_referents(value) if callable(one)]
    if "(vectorized)" not in value.__name__ or len(functions) != 1:
        return NotImplemented
    return rebuild_data.universal, (functions[0], value.nin, value.nout, value.identity)


# --- pandas and Arrow ----------------------------------------------------------------------------


def reduce_text_reader(_pickler: Storing, value: Any) -> Any:
    """Chunks of a csv file: read on after the rows that were read."""
    if value.handles is None:
        raise Refusal("a reader that is closed", CELL_ADVICE)
    handle = value.handles.handle
    own = any(handle is one for one in value.handles.created_handles)
    source = getattr(handle, "name", None)
    inner = getattr(handle, "buffer", handle)
    if type(inner) is io.StringIO:
        source = io.StringIO(inner.getvalue())
    elif not own or type(source) is not str:
        raise Refusal("a reader over an open file", "give it the path of the file")
    return rebuild_data.chunks_of_text, (source, value.engine, value.orig_options, value._currow)


def reduce_arrow(_pickler: Storing, value: Any) -> Any:
    """A slice of a big table without the rest of it."""
    try:
        held, own = value.get_total_buffer_size(), value.nbytes
    except (AttributeError, NotImplementedError):
        return NotImplemented
    if held < own + COMPACT_BYTES or held < 2 * own:
        return NotImplemented
    arrow: Any = sys.modules["pyarrow"]
    batch = isinstance(value, arrow.RecordBatch)
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, value.schema) as writer:
        writer.write(value)
    return rebuild_data.arrow_stream, (sink.getvalue().to_pybytes(), batch)


# --- ctypes --------------------------------------------------------------------------------------

_DATA = ctypes.Structure.__mro__[1]
_ARRAY, _POINTER = type(ctypes.c_int * 1), type(ctypes.POINTER(ctypes.c_int))
_RECORDS = (type(ctypes.Structure), type(ctypes.Union))
_CALLABLE: Any = ctypes.CFUNCTYPE(None).__mro__[1]
_FUNCTION = type(_CALLABLE)


def reduce_ctypes_class(cls: Any) -> Any:
    """A class of C data that has no importable name; None when it is no such class."""
    meta = type(cls)
    own = dict_of(cls)
    if meta is _ARRAY and "_length_" in own:
        return rebuild_data.ctypes_array, (own["_type_"], own["_length_"])
    if meta is _POINTER and "_type_" in own:
        return rebuild_data.ctypes_pointer_class, (own["_type_"],)
    if meta is _FUNCTION and "_flags_" in own:
        arguments = own.get("_argtypes_", ())
        return rebuild_data.ctypes_function_class, (own.get("_restype_"), arguments, own["_flags_"])
    if not any(base in _RECORDS for base in mro_of(meta)):
        return None
    early = ("__module__", "__qualname__", "_pack_", "_anonymous_", "_layout_", "_align_")
    body = {k: own[k] for k in early if k in own}
    fields = own.get("_fields_")
    names = {field[0] for field in fields or ()}
    late = ("__dict__", "__weakref__", "_fields_", *early)
    attributes = {k: v for k, v in own.items() if k not in names and k not in late}
    bases = type.__getattribute__(cls, "__bases__")
    return (
        rebuild_data.ctypes_class, (None, cls.__name__, bases, body), (attributes, fields), None,
        None, rebuild_data.fill_ctypes_class,
    )  # fmt: skip


def reduce_ctypes(_pickler: Storing, value: Any) -> Any:
    """C data: by its bytes, in the memory it shares, or with what it points to."""
    meta = type(type(value))
    base = value._b_base_
    if base is not None and not isinstance(value, ctypes._Pointer):
        top = base
        while top._b_base_ is not None:
            top = top._b_base_
        offset = ctypes.addressof(value) - ctypes.addressof(top)
        if 0 <= offset <= ctypes.sizeof(top) - ctypes.sizeof(value):
            return rebuild_data.ctypes_part, (type(value), top, offset)
    if meta is _POINTER:
        held = value._objects
        if not value:
            return rebuild_data.ctypes_pointer, (type(value), None)
        if not held or "1" not in held:
            raise Refusal("a pointer into memory that has no name", CELL_ADVICE)
        return rebuild_data.ctypes_pointer, (type(value), held["1"])
    if isinstance(value, _CALLABLE):
        return _function(value)
    owner = _lender(value)
    if owner is not None:
        return rebuild_data.ctypes_part, (
            type(value), owner, ctypes.addressof(value) - address_of(owner),
        )  # fmt: skip
    if meta in _RECORDS and value._objects is None and not any(memoryview(value).cast("B")):
        return rebuild_data.ctypes_value, (type(value), bytes(value))  # null pointers are fine
    if not value._b_needsfree_:
        raise Refusal("C data in memory that has no name", CELL_ADVICE)
    return NotImplemented


def _lender(value: Any) -> Any:
    """The object whose memory ``from_buffer`` has borrowed."""
    held = value._objects
    for item in held.values() if type(held) is dict else (held,):
        if type(item) is memoryview:
            return item.obj
    return None


def _function(value: Any) -> Any:
    held = value._objects
    library = next((v for v in (held or {}).values() if isinstance(v, ctypes.CDLL)), None)
    if library is None:
        raise Refusal("a function pointer of C", "make it again after a move")
    return rebuild_data.ctypes_function, (library, value.__name__)


def reduce_library(_pickler: Storing, value: Any) -> Any:
    """A shared library by name, with the types declared for its functions."""
    known = {
        name: (found.restype, found.argtypes)
        for name, found in value.__dict__.items()
        if isinstance(found, _CALLABLE)
    }
    return rebuild_data.ctypes_library, (type(value), value._name, known)


def is_ctypes(cls: type) -> bool:
    """Whether it is a class of C data without an importable name."""
    return any(base is _DATA for base in mro_of(cls)) and not importable_class(cls)


def reduce_record(_pickler: Storing, value: Any) -> Any:
    """A record of a structured array: a look at the array's own memory."""
    numpy: Any = sys.modules["numpy"]
    base = numpy.void.base.__get__(value)
    if not isinstance(base, numpy.ndarray) or value.dtype.hasobject or not value.dtype.fields:
        return NotImplemented
    place = numpy.void.__array_interface__.__get__(value)["data"][0]
    start = numpy.ndarray.__array_interface__.__get__(base)["data"][0]
    if not 0 <= place - start < base.nbytes or not base.flags.c_contiguous:
        return NotImplemented
    return rebuild_data.record, (base, value.dtype, place - start)


with io.BytesIO().getbuffer() as _LENT:
    EXACT: dict[type, Handler] = {memoryview: reduce_memoryview, type(_LENT.obj): reduce_lent}
BASES: dict[type, Handler] = {_DATA: reduce_ctypes, ctypes.CDLL: reduce_library}
LATE: dict[tuple[str, str], Handler] = {
    ("numpy", "flatiter"): reduce_flat,
    ("numpy", "ufunc"): reduce_ufunc,
    ("numpy", "void"): reduce_record,
    ("numpy.lib.npyio", "NpzFile"): reduce_arrays,
    ("pandas.io.parsers.readers", "TextFileReader"): reduce_text_reader,
    ("pyarrow", "Table"): reduce_arrow,
    ("pyarrow", "RecordBatch"): reduce_arrow,
}
