"""What stored pickles of PyTorch's objects call. Part of the format: only add."""

import importlib
from typing import Any

SMALL_BYTES = 64 << 10
"""Storages below this size have memory of torch's own again, which may be resized; bigger ones are mapped."""


class GraphLeftBehind(RuntimeError):
    """``backward()`` went through a tensor whose graph stayed in the process that made it."""


class DeviceMissing(RuntimeError):
    """The memory lay on a device that is not here."""


def _torch() -> Any:
    return importlib.import_module("torch")


# --- storages ------------------------------------------------------------------------------------


def storage(memory: Any, offset: int, size: int, alone: bool) -> Any:
    """Memory on the host. ``alone``: nobody but tensors has it."""
    torch = _torch()
    made = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=offset)
    if alone and size < SMALL_BYTES:
        made = made.clone()
    return made.untyped_storage()


def shared_storage(memory: Any, offset: int, size: int) -> Any:
    """Memory that other processes may be given."""
    return storage(memory, offset, size, False).clone().share_memory_()


def empty_storage(device: str, size: int) -> Any:
    """A storage without content."""
    return _torch().UntypedStorage(size, device=device)


def device_storage(memory: Any, size: int, place: str) -> Any:
    """Memory on a device, or pinned for one (then, where none is here, ordinary memory)."""
    torch = _torch()
    on_host = torch.frombuffer(memory, dtype=torch.uint8, count=size)
    if place == "pinned":
        made = on_host.pin_memory() if torch.cuda.is_available() else on_host.clone()
        return made.untyped_storage()
    device = torch.device(place)
    library = getattr(torch, device.type, None)
    count = library.device_count() if library is not None and library.is_available() else 0
    if (device.index or 0) >= count:
        raise DeviceMissing(f"it lay on {place}, which is not here: restore where there is one")
    return on_host.to(device).untyped_storage()


def typed_storage(untyped: Any, dtype: str) -> Any:
    """A storage that says what its bytes are."""
    torch = _torch()
    return torch.storage.TypedStorage(
        wrap_storage=untyped, dtype=getattr(torch, dtype), _internal=True
    )


def limits(kind: str, dtype: str) -> Any:
    """What numbers of a kind can be."""
    torch = _torch()
    return getattr(torch, kind)(getattr(torch, dtype))


# --- tensors -------------------------------------------------------------------------------------


def tensor(
    kind: Any,
    memory: Any,
    dtype: str,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    bits: tuple[bool, bool, bool],
    wanted: bool,
    leaf: bool,
) -> Any:
    """A dense tensor over a storage."""
    torch = _torch()
    conjugated, negated, inference = bits
    with torch.inference_mode(inference), torch.no_grad():
        made = torch.empty(0, dtype=getattr(torch, dtype), device=memory.device)
        made.set_(memory, offset, shape, strides)
        if conjugated:
            torch._C._set_conj(made, True)
        if negated:
            torch._C._set_neg(made, True)
    return _as(torch, kind, made, wanted, leaf)


def other(kind: Any, make: Any, arguments: tuple[Any, ...], wanted: bool) -> Any:
    """A tensor of another layout, as torch makes it."""
    torch = _torch()
    with torch.no_grad():
        made = make(*arguments)
    return _as(torch, kind, made, wanted, True)


def _as(torch: Any, kind: Any, made: Any, wanted: bool, leaf: bool) -> Any:
    if kind is not torch.Tensor:
        made = torch.Tensor._make_subclass(kind, made, wanted and leaf)
    if wanted and leaf:
        return made.requires_grad_()
    return _left_behind(torch, made) if wanted else made


def _left_behind(torch: Any, made: Any) -> Any:
    """The result of something that is not there: who asks for gradients through it is told."""

    class LeftBehind(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, _anchor: Any, value: Any) -> Any:
            ctx.mark_dirty(value)
            return value

        @staticmethod
        def backward(_ctx: Any, *_gradients: Any) -> Any:
            raise GraphLeftBehind(
                "the autograd graph of this tensor did not move with its session: run the forward pass again"
            )

    with torch.enable_grad():
        return LeftBehind.apply(torch.empty(0, requires_grad=True), made)


def fill(made: Any, state: tuple[Any, ...]) -> None:
    """Attributes, gradient and hooks."""
    attributes, gradient, hooks, after, retained, names = state
    torch = _torch()
    with torch._C.DisableTorchFunctionSubclass():
        made.__dict__.update(attributes or {})
        if retained:
            made.retain_grad()
        if gradient is not None:
            made.grad = gradient
        if hooks is not None:
            made._backward_hooks = hooks
        if after is not None:
            made._post_accumulate_grad_hooks = after
        if names is not None:
            made.rename_(*names)


# --- data loaders and compiled modules ---------------------------------------------------------


def loading(kind: Any) -> Any:
    """An iterator over a data loader; its parts follow."""
    return object.__new__(kind)


def fill_loading(made: Any, state: dict[str, Any]) -> None:
    """Where it stands."""
    made.__dict__.update(state)


def compiled(module: Any, how: Any) -> Any:
    """A module as ``torch.compile`` gives it."""
    return how(module)
