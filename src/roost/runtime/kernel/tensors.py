"""PyTorch's tensors: their memory is stored once, out of band, and whoever shared it shares it again.

torch's own pickles copy the memory of every tensor, so that views part from each other, and leave
gradients, hooks and the graph behind a result out. Only metadata are asked for here, past what a subclass
answers. Memory of a device is copied to the host by the process itself: a forked child cannot do it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roost.runtime.kernel import rebuild, rebuild_tensors
from roost.runtime.kernel.homing import AtHome
from roost.runtime.kernel.memory import Range
from roost.runtime.kernel.naming import dict_of, mro_of
from roost.runtime.kernel.refusal import Handler, Refusal, refuse

GRAPH_ADVICE = "run the forward pass again after a move, or keep tensor.detach()"
_SHM = "/torch_"
"""Names of torch's own shared memory begin like this."""


def loaded() -> Any:
    """The library, once it can be used; None while a notebook has not imported it."""
    library: Any = sys.modules.get("torch")
    return library if library is not None and hasattr(library, "UntypedStorage") else None


def kinds(torch: Any) -> tuple[type, ...]:
    """What has storages."""
    return torch.Tensor, torch.UntypedStorage, torch.TypedStorage


# --- what belongs together -----------------------------------------------------------------------


def below(torch: Any, value: Any) -> Iterator[Any]:
    """What a tensor leads to and the garbage collector does not tell: objects that live as long as it."""
    if not isinstance(value, torch.Tensor):
        return
    with torch._C.DisableTorchFunctionSubclass():
        if value.is_leaf or value.retains_grad:
            yield value.grad
        yield value._post_accumulate_grad_hooks


def storages(torch: Any, value: Any) -> list[tuple[int, Range | None]]:
    """Address of each storage that a tensor (or storage) has, and where its memory lies on the host."""
    found = []
    for one in _storages(torch, value):
        try:
            size = one.nbytes() if one.device.type == "cpu" else 0
            start = one.data_ptr() if size else 0
        except RuntimeError:  # of a tensor that only stands for others
            start = 0
        found.append((one._cdata, Range(start, start + size, torch) if start else None))
    return found


def _storages(torch: Any, value: Any) -> list[Any]:
    if isinstance(value, torch.UntypedStorage):
        return [value]
    if not isinstance(value, torch.Tensor):
        return [value._untyped_storage]
    with torch._C.DisableTorchFunctionSubclass():
        try:
            if value.layout is torch.sparse_coo:
                return [value._indices().untyped_storage(), value._values().untyped_storage()]
            return [value.untyped_storage()]
        except (RuntimeError, NotImplementedError, AttributeError):  # it has none of its own
            return []


# --- tensors -------------------------------------------------------------------------------------


def reduce_tensor(pickler: Any, value: Any) -> Any:
    """A view of a storage that is stored once, with gradient, hooks and attributes."""
    torch = sys.modules["torch"]
    kind = type(value)
    if (place := pickler.around.singletons.where(value)) is not None:
        return rebuild.module_attribute, place
    if not _plain_kind(torch, kind):
        return NotImplemented
    with torch._C.DisableTorchFunctionSubclass():
        _at_home(pickler, value)
        if torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise Refusal("a tensor inside a transformation of torch.func", GRAPH_ADVICE)
        wanted = value.requires_grad
        leaf = value.is_leaf
        if wanted and not leaf:
            pickler.note(
                "its values are there, the autograd graph that made it is not: backward() through it raises"
            )
        if value.layout is torch.strided and not _awkward(value):
            made: Any = (
                rebuild_tensors.tensor,
                (
                    kind, value.untyped_storage(), _name(value.dtype), value.storage_offset(),
                    tuple(value.size()), value.stride(), _bits(torch, value), wanted, leaf,
                ),
            )  # fmt: skip
        else:
            if wanted and not leaf:
                raise Refusal("an autograd graph over a tensor that is not dense", GRAPH_ADVICE)
            made = (rebuild_tensors.other, (kind, *value._reduce_ex_internal(5), wanted))
        names = tuple(getattr(value, "names", ()))  # newer versions have none
        state = (
            dict(value.__dict__) or None,
            value.grad if leaf or value.retains_grad else None,
            value._backward_hooks if leaf else None,
            value._post_accumulate_grad_hooks,
            True if value.retains_grad and not leaf else None,
            names if any(names) else None,
        )
    if all(part is None for part in state):
        return made
    return *made, state, None, None, rebuild_tensors.fill


def _at_home(pickler: Any, value: Any) -> None:
    """What belongs to a device is left to the process that can use it."""
    if pickler.around.forked and value.device.type not in ("cpu", "meta"):
        raise AtHome(type(value))


def _plain_kind(torch: Any, kind: type) -> bool:
    """Whether its class leaves pickling and operators to torch."""
    for base in mro_of(kind):
        own = dict_of(base)
        if base is torch.Tensor or base is torch.nn.Parameter:
            return True
        if own.keys() & {"__reduce__", "__reduce_ex__", "__setstate__", "__torch_dispatch__"}:
            return False
    return False


def _awkward(value: Any) -> bool:
    return bool(
        value.is_quantized or value.is_nested or value.is_mkldnn or value.device.type == "meta"
    )


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _bits(torch: Any, value: Any) -> tuple[bool, bool, bool]:
    """Lazily conjugated, lazily negated, made in inference mode."""
    return value.is_conj(), value.is_neg(), value.is_inference()


# --- storages ------------------------------------------------------------------------------------


def reduce_storage(pickler: Any, value: Any) -> Any:
    """Memory on the host as it lies there; of a device as a copy."""
    torch = sys.modules["torch"]
    _at_home(pickler, value)
    where = value.device
    if pickler.around.forked and _accelerated(torch):  # it may be pinned, which only CUDA knows
        raise AtHome(type(value))
    size = value.nbytes()
    if where.type == "meta" or not size:
        return rebuild_tensors.empty_storage, (str(where), size)
    pinned = where.type == "cpu" and _accelerated(torch) and value.is_pinned()
    if where.type != "cpu" or pinned:
        copied = copy_to_host(torch, value)
        memory, _start = pickler.memory(copied.data_ptr(), size, copied)
        return rebuild_tensors.device_storage, (memory, size, "pinned" if pinned else str(where))
    name = value.filename if value.is_shared() else None
    if name and not name.startswith(_SHM) and Path(name).exists():
        raise Refusal(f"memory that is the file {name}", "map the file again after a move")
    start = value.data_ptr()
    memory, begin = pickler.memory(start, size, value)
    if value.is_shared():
        return rebuild_tensors.shared_storage, (memory, start - begin, size)
    alone = value.resizable() and pickler.joined(start, size) is None
    return rebuild_tensors.storage, (memory, start - begin, size, alone)


def reduce_typed(_pickler: Any, value: Any) -> Any:
    """A storage that says what its bytes are."""
    return rebuild_tensors.typed_storage, (value._untyped_storage, _name(value.dtype))


def copy_to_host(torch: Any, value: Any) -> Any:
    """A storage of a device (or pinned memory), copied when all that is queued for it has run."""
    library: Any = getattr(torch, value.device.type, None) if value.device.type != "cpu" else None
    if library is not None and getattr(library, "is_current_stream_capturing", bool)():
        raise Refusal("memory of a device while a graph is recorded there", "end the recording")
    if library is not None and hasattr(library, "synchronize"):
        library.synchronize(*([value.device] if library.device_count() > 1 else []))
    made = torch.UntypedStorage(value.nbytes())
    made.copy_(value)
    return made


def _accelerated(torch: Any) -> bool:
    """Whether a device is in use, in this process or (asked in a forked child) in its parent."""
    cuda = torch.cuda
    return bool(cuda.is_initialized() or cuda._is_in_bad_fork())


def reduce_generator(pickler: Any, value: Any) -> Any:
    """The library's own by its name, others in torch's own way where it can be gone."""
    _at_home(pickler, value)
    place = pickler.around.singletons.where(value)
    return NotImplemented if place is None else (rebuild.module_attribute, place)


def reduce_cupy(_pickler: Any, value: Any) -> Any:
    """An array of CuPy's as it stands once all that is queued has run."""
    if value.base is not None:
        raise Refusal("a view of another array's memory on a device", "keep a copy of it instead")
    sys.modules["cupy"].cuda.runtime.deviceSynchronize()
    return NotImplemented


# --- data loaders and compiled modules ---------------------------------------------------------


def reduce_loading(_pickler: Any, value: Any) -> Any:
    """An iterator over a ``DataLoader`` where it stands, when it loads in this process."""
    if hasattr(value, "_workers"):
        raise Refusal(
            "an iterator over a DataLoader with worker processes",
            "use num_workers=0, or begin it anew",
        )
    state = dict(value.__dict__)
    return rebuild_tensors.loading, (type(value),), state, None, None, rebuild_tensors.fill_loading


def reduce_compiled(_pickler: Any, value: Any) -> Any:
    """What ``torch.compile`` made of a module: compiled again when it is called."""
    return rebuild_tensors.compiled, (value._orig_mod, value.dynamo_ctx)


def reduce_limits(_pickler: Any, value: Any) -> Any:
    """``torch.finfo`` and ``torch.iinfo``."""
    return rebuild_tensors.limits, (type(value).__name__, str(value.dtype))


_DEVICE = "make it again after a move: it belongs to the device"
LATE: dict[tuple[str, str], Handler] = {
    ("torch", "Tensor"): reduce_tensor,
    ("torch", "UntypedStorage"): reduce_storage,
    ("torch", "TypedStorage"): reduce_typed,
    ("torch", "Generator"): reduce_generator,
    ("torch", "finfo"): reduce_limits,
    ("torch", "iinfo"): reduce_limits,
    ("cupy", "ndarray"): reduce_cupy,
    ("torch._dynamo.eval_frame", "OptimizedModule"): reduce_compiled,
    ("torch.utils.data.dataloader", "_BaseDataLoaderIter"): reduce_loading,
    ("torch", "Stream"): refuse("a stream of a device", _DEVICE),
    ("torch", "Event"): refuse("an event of a device", _DEVICE),
    ("torch.cuda", "Stream"): refuse("a stream of a device", _DEVICE),
    ("torch.cuda", "Event"): refuse("an event of a device", _DEVICE),
    ("torch.cuda", "CUDAGraph"): refuse("a graph recorded on a device", _DEVICE),
}
