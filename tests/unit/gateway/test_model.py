"""Routes and tables: longest prefix in whole segments, epochs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.gateway.model import (
    Hold,
    Host,
    Route,
    RouteSnapshot,
    RouteTable,
    Tcp,
    Unix,
    changed,
    default_prefix,
    from_edge,
    to_edge,
)
from roost.ports.errors import StaleEpoch


def route(name: str, epoch: int = 0, prefix: str = "") -> Route:
    return Route(name=name, prefix=prefix or default_prefix(name), target=Hold(), epoch=epoch)


def test_names_have_their_prefixes() -> None:
    assert default_prefix("n/s-1") == "/n/s-1"
    assert default_prefix("api") == "/api"
    assert default_prefix("kernel/s-1") == "/_roost/kernel/s-1"
    assert default_prefix("shell/i-1") == "/_roost/shell/i-1"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/n/s-1", "n/s-1"),
        ("/n/s-1/", "n/s-1"),
        ("/n/s-1/api/kernels/x/y/z", "n/s-1"),
        ("/n/s-1/deep/er", "deep"),
        ("/n/s-12", "n/s-12"),
        ("/n/s-1x", None),
        ("/n", None),
        ("/", None),
        ("", None),
        ("/api", "api"),
        ("/apis", None),
        ("//n/s-1", None),
    ],
)
def test_the_longest_prefix_wins_in_whole_segments(path: str, name: str | None) -> None:
    table = RouteTable(
        (route("n/s-1"), route("n/s-12"), route("api"), route("deep", prefix="/n/s-1/deep"))
    )
    found = table.match(path)
    assert (found.name if found else None) == name


def test_a_root_route_takes_the_rest() -> None:
    table = RouteTable((route("all", prefix="/"), route("api")))
    assert table.match("/anything/at/all").name == "all"  # type: ignore[union-attr]
    assert table.match("/api/x").name == "api"  # type: ignore[union-attr]


def test_an_older_epoch_never_replaces_a_newer() -> None:
    assert changed(route("a", 3), route("a", 3)).epoch == 3
    with pytest.raises(StaleEpoch):
        changed(route("a", 3), route("a", 2))
    table = RouteTable((route("a", 3), route("b", 1)), version=5)
    after, stale = table.replaced(RouteSnapshot(version=6, routes=(route("a", 2), route("c"))))
    assert stale == ("a",)
    assert after.by_name["a"].epoch == 3
    assert sorted(after.by_name) == ["a", "c"]


@given(
    st.lists(
        st.builds(
            Route,
            name=st.text("abn/", min_size=1, max_size=6),
            prefix=st.text("/ab", max_size=5),
            target=st.sampled_from(
                [Hold(), Tcp(host="h", port=1), Unix(path="/p"), Host(host_id="h", service="s")]
            ),
            epoch=st.integers(0, 9),
            tokens=st.tuples(st.text(max_size=3)),
        ),
        max_size=5,
        unique_by=lambda r: r.name,
    )
)
def test_snapshots_cross_the_wire(routes: list[Route]) -> None:
    snapshot = RouteTable(routes, version=7).snapshot()
    frames = to_edge()
    assert frames.decode(frames.encode(snapshot)[4:]) == snapshot
    assert from_edge().limit >= 1 << 20
    for path in ("/a/b", "/", "//", "/a"):
        found = RouteTable(routes).match(path)
        assert found is None or (path + "/").startswith(found.prefix.rstrip("/") + "/")
