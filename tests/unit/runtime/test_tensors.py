"""Memory that is shared without a reference, and PyTorch's tensors (where it is installed)."""

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from roost.runtime.kernel import pickling, rebuild_tensors, scripts, tensors
from roost.runtime.kernel.homing import AtHome
from roost.runtime.kernel.memory import Range, clusters, joined, of_bytes
from roost.runtime.kernel.naming import Singletons
from roost.runtime.kernel.reach import Walker, group
from roost.runtime.kernel.refusal import Refusal


def moved(**variables: Any) -> dict[str, Any]:
    """The variables as another process would have them, and ``notes``."""
    space, known = vars(sys.modules["__main__"]), Singletons()
    known.update("/nowhere", space)
    around = pickling.Surroundings("/nowhere", space, known, None, {})
    walker = Walker(space, known, ())
    reaches = {name: walker.reach(value) for name, value in variables.items()}
    made: dict[str, Any] = {"groups": group(reaches), "notes": []}
    for names in made["groups"]:
        shared = [lies for name in names for lies in reaches[name].memory]
        done = pickling.dump([variables[name] for name in names], around, shared=shared)
        buffers = [bytearray(view) for view in done.buffers if isinstance(view, memoryview)]
        values = pickle.loads(done.content, buffers=buffers)
        made.update(zip(names, values, strict=True))
        made["notes"] += done.notes
    return made


# --- without the library -------------------------------------------------------------------------


def test_ranges_that_overlap_are_one_and_alike_ones_stay_alone() -> None:
    raw = bytearray(100)
    lent = of_bytes(raw)
    assert lent is not None and lent.end - lent.start == 100
    part = Range(lent.start + 10, lent.start + 20, None)
    far, again, beside = Range(8, 16, None), Range(8, 16, None), Range(16, 24, None)
    assert joined([far, again, beside]) == []
    assert joined([part, far, lent]) == [lent]
    assert [len(found) for found in clusters([far, beside, again, part, lent])] == [2, 1, 2]
    assert joined([Range(0, 10, None), Range(5, 15, None)]) == [Range(0, 15, None)]


class Storage:
    """A stand-in for memory of a device."""

    filename = None

    def __init__(self, device: str, content: bytes = b"device") -> None:
        self.device = types.SimpleNamespace(type=device)
        self.content = content

    def nbytes(self) -> int:
        return len(self.content)

    def is_pinned(self) -> bool:
        return True


class Copied:
    def __init__(self, size: int) -> None:
        self.memory = bytearray(size)

    def copy_(self, other: Storage) -> None:
        assert other.device.type == "cpu" or "waited" in sys.modules["torch"].calls
        self.memory[:] = other.content

    def data_ptr(self) -> int:
        found = of_bytes(self.memory)
        assert found is not None
        return found.start


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in for a torch with a device in use."""
    calls: list[str] = []
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True,
        _is_in_bad_fork=lambda: False,
        is_current_stream_capturing=lambda: False,
        synchronize=lambda *_: calls.append("waited"),
        device_count=lambda: 1,
    )
    made = types.SimpleNamespace(cuda=cuda, calls=calls, UntypedStorage=Copied)
    monkeypatch.setitem(sys.modules, "torch", made)
    return made


def pickler(*, forked: bool) -> Any:
    around = types.SimpleNamespace(forked=forked, table={}, bases={})
    made = types.SimpleNamespace(around=around, alive=[])
    made.memory = lambda start, size, owner: (made.alive.append(owner) or (start, size), start)
    return made


@pytest.mark.parametrize("place", ["cuda", "cpu"])
def test_a_forked_child_leaves_memory_of_a_device_to_its_parent(library: Any, place: str) -> None:
    with pytest.raises(AtHome):
        tensors.reduce_storage(pickler(forked=True), Storage(place))
    assert library.calls == []
    at_home = pickler(forked=False)
    call, (_memory, size, told) = tensors.reduce_storage(at_home, Storage(place))
    assert call is rebuild_tensors.device_storage and size == 6
    assert at_home.alive[0].memory == b"device" and ("pinned" in told) == (place == "cpu")


def test_memory_of_a_device_is_not_read_while_a_graph_is_recorded(library: Any) -> None:
    library.cuda.is_current_stream_capturing = lambda: True
    with pytest.raises(Refusal, match="recorded"):
        tensors.reduce_storage(pickler(forked=False), Storage("cuda"))


# --- with it -------------------------------------------------------------------------------------


def test_tensors_share_memory_as_before_with_whoever_has_it() -> None:
    torch = pytest.importorskip("torch")
    numpy = pytest.importorskip("numpy")
    a = numpy.arange(100_000.0).reshape(100, 1000)
    t = torch.from_numpy(a[10:20])
    base, raw = torch.arange(24.0), bytearray(b"abcd" * 9)
    row, seen = base.view(4, 6)[1], torch.frombuffer(raw, dtype=torch.uint8)
    found = moved(
        a=a, t=t, n=t[2:4].numpy(), base=base, row=row, raw=raw, seen=seen, alone=row.clone()
    )
    assert found["groups"] == [("a", "n", "t"), ("alone",), ("base", "row"), ("raw", "seen")]
    found["a"][12, 3], found["base"][6], found["raw"][0] = -5, 77, 3
    assert (
        found["t"][2, 3] == found["n"][0, 3] == -5
        and found["row"][0] == 77
        and found["seen"][0] == 3
    )
    assert found["row"].untyped_storage() is found["base"].untyped_storage()
    assert found["alone"].untyped_storage().resizable()


def test_gradients_and_hooks_come_along_and_a_graph_left_behind_says_so() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(2))
    seen: list[Any] = []
    weight.register_hook(seen.append)
    weight.note = "mine"
    (weight * 2).sum().backward()
    found = moved(weight=weight, loss=(weight * 3).sum())
    made = found["weight"]
    assert made.grad.tolist() == [2, 2] and made.note == "mine" and type(made) is torch.nn.Parameter
    made.sum().backward()
    assert made.grad.tolist() == [3, 3] and found["notes"]
    loss = found["loss"]
    assert loss.item() == 6 and not loss.is_leaf and loss.requires_grad
    with pytest.raises(rebuild_tensors.GraphLeftBehind, match="run the forward pass again"):
        (loss + made.sum()).backward()


@pytest.mark.filterwarnings("ignore")
def test_layouts_bits_and_kinds_of_tensors() -> None:
    torch = pytest.importorskip("torch")
    conjugated, coo = torch.tensor([1 + 2j]).conj(), torch.eye(2).to_sparse().requires_grad_()
    packed = torch.quantize_per_tensor(torch.tensor([0.1, -1.0]), 0.1, 10, torch.quint8)
    found = moved(c=conjugated, s=coo, q=packed, e=torch.empty(0, 3), b=torch.ones(2).bfloat16())
    assert found["c"].is_conj() and found["c"].tolist() == [1 - 2j] and found["s"].requires_grad
    assert found["s"].to_dense().tolist() == [[1, 0], [0, 1]] and found["e"].shape == (0, 3)
    assert found["q"].int_repr().tolist() == packed.int_repr().tolist() and found["b"].sum() == 2


def test_a_view_of_an_array_on_a_device_is_refused_by_name() -> None:
    with pytest.raises(Refusal, match="view"):
        tensors.reduce_cupy(None, types.SimpleNamespace(base=object()))


@pytest.mark.filterwarnings("ignore")
def test_modules_that_refuse_to_be_pickled_and_loaders_under_way() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
    part, x = normed.parametrizations.weight.original0, torch.ones(1, 3)
    loader = iter(torch.utils.data.DataLoader(range(9), batch_size=2, shuffle=True))
    next(loader)
    found = moved(normed=normed, part=part, loader=loader)
    assert found["normed"](x).tolist() == normed(x).tolist() and not found["notes"]
    assert found["normed"].parametrizations.weight.original0 is found["part"]
    assert [b.tolist() for b in found["loader"]] == [b.tolist() for b in loader]


def test_an_optimizer_keeps_its_hooks_and_what_its_class_leaves_out() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(2))
    made, steps = torch.optim.LBFGS([weight], max_iter=2), list[Any]()
    made.register_step_post_hook(lambda *_: steps.append(1))
    found = moved(made=made, weight=weight, steps=steps)
    assert found["made"].param_groups[0]["params"][0] is found["weight"]
    found["made"].step(lambda: (found["weight"] ** 2).sum())
    assert found["steps"] == [1]


def test_the_default_generator_is_itself_and_a_tensor_that_only_stands_for_others_is_walked() -> (
    None
):
    torch = pytest.importorskip("torch")

    class Standing(torch.Tensor):  # type: ignore[misc, name-defined]
        __torch_dispatch__ = classmethod(lambda *_: None)

    made = torch.Tensor._make_wrapper_subclass(Standing, (2,))
    walker = Walker(vars(sys.modules["__main__"]), Singletons(), ())
    assert not walker.reach(made).memory
    own = torch.Generator().manual_seed(3)
    found = moved(default=torch.default_generator, own=own)
    assert found["default"] is torch.default_generator
    assert torch.equal(torch.rand(2, generator=found["own"]), torch.rand(2, generator=own))


def test_a_script_resumes_with_shared_memory_and_the_random_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    numpy = pytest.importorskip("numpy")
    monkeypatch.setenv(scripts.WHERE, str(tmp_path))
    array = numpy.zeros(50_000)
    scripts.checkpoint(array=array, tensor=torch.from_numpy(array))
    drawn = torch.rand(3)
    found = scripts.resume()
    assert found is not None
    found["array"][7] = 5
    assert found["tensor"][7] == 5 and torch.equal(torch.rand(3), drawn)


def test_memory_of_a_device_that_is_not_here_is_told_by_name() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(rebuild_tensors.DeviceMissing, match="cuda:0"):
        rebuild_tensors.device_storage(bytearray(8), 8, "cuda:0")
