"""Each cloud's polling half against its serving half over real HTTP, and against rubbish."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.notices import Facts, MetadataServer, dialect, notice_source
from roost.ports.errors import Invalid
from roost.ports.values import Notice, NoticeKind

CLOCK = SystemClock()
FACTS = Facts(instance_id="i-1", instance_type="m5.xlarge", region="r1", zone="r1-a")
CLOUDS = ("aws", "azure", "gcp")


class Service:
    """A metadata service whose notices a test changes."""

    def __init__(self, cloud: str) -> None:
        self.notices: tuple[Notice, ...] = ()
        speaks = dialect(cloud, FACTS, clock=CLOCK)
        self.server = MetadataServer("127.0.0.1", speaks, lambda: self.notices, clock=CLOCK)

    def ask(
        self, target: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        place = urlsplit(self.server.url)
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 0, timeout=10)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, target, body=body, headers=named)
            reply = connection.getresponse()
            return reply.status, reply.read().decode(), dict(reply.getheaders())
        finally:
            connection.close()


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    found = Service(request.param)
    yield found
    found.server.close()


def going(seconds: float = 100.0) -> Notice:
    now = CLOCK.now_s()
    return Notice(kind=NoticeKind.INTERRUPTION, seen_s=now, deadline_s=now + seconds)


@pytest.mark.parametrize(("service", "cloud"), [(c, c) for c in CLOUDS], indirect=["service"])
async def test_round_trip(service: Service, cloud: str) -> None:
    source = notice_source(cloud, service.server.url, clock=CLOCK)
    assert await source.poll() is None
    told = going(30.0)
    service.notices = (told,)
    seen = await source.poll()
    assert seen is not None
    assert seen.kind is NoticeKind.INTERRUPTION
    assert seen.deadline_s == pytest.approx(told.deadline_s, abs=1.5)
    assert seen.source.startswith(cloud)
    assert await source.poll() == seen, "first seen is first seen"


@pytest.mark.parametrize("service", ["aws"], indirect=True)
async def test_aws_rebalance_comes_first_and_yields_to_the_interruption(service: Service) -> None:
    source = notice_source("aws", service.server.url, clock=CLOCK)
    advice = Notice(kind=NoticeKind.REBALANCE, seen_s=CLOCK.now_s())
    service.notices = (advice,)
    seen = await source.poll()
    assert seen is not None
    assert (seen.kind, seen.deadline_s) == (NoticeKind.REBALANCE, None)
    assert await source.poll() == seen
    service.notices = (advice, going())
    after = await source.poll()
    assert after is not None
    assert after.kind is NoticeKind.INTERRUPTION


@pytest.mark.parametrize("service", ["azure", "gcp"], indirect=True)
async def test_a_recommendation_is_not_spoken_elsewhere(service: Service) -> None:
    service.notices = (Notice(kind=NoticeKind.REBALANCE, seen_s=CLOCK.now_s()),)
    for cloud in ("azure", "gcp"):
        assert await notice_source(cloud, service.server.url, clock=CLOCK).poll() is None


@pytest.mark.parametrize("service", ["aws"], indirect=True)
async def test_aws_as_the_real_service_does_it(service: Service) -> None:
    action = "/latest/meta-data/spot/instance-action"
    ttl = {"X_aws_ec2_metadata_token_ttl_seconds": "60"}
    assert service.ask(action)[0] == 401
    assert service.ask("/latest/api/token", "PUT")[0] == 400
    for bad in ("0", "21601", "x"):
        headers = {"X_aws_ec2_metadata_token_ttl_seconds": bad}
        assert service.ask("/latest/api/token", "PUT", **headers)[0] == 400
    assert service.ask("/latest/api/token", "PUT", **ttl, X_Forwarded_For="1.2.3.4")[0] == 403
    status, token, headers = service.ask("/latest/api/token", "PUT", **ttl)
    assert (status, headers["X-Aws-Ec2-Metadata-Token-Ttl-Seconds"]) == (200, "60")
    known = {"X_aws_ec2_metadata_token": token}
    assert service.ask("/latest/meta-data/instance-type", **known)[:2] == (200, "m5.xlarge")
    assert service.ask("/latest/meta-data/placement/availability-zone", **known)[1] == "r1-a"
    assert service.ask(action, **known)[0] == 404
    assert service.ask(action, **{"X_aws_ec2_metadata_token": "guess"})[0] == 401
    service.notices = (Notice(kind=NoticeKind.INTERRUPTION, seen_s=1.0, deadline_s=1767225720.9),)
    status, body, _ = service.ask(action, **known)
    assert json.loads(body) == {"action": "terminate", "time": "2026-01-01T00:02:00Z"}
    assert service.ask("/latest/meta-data/spot/termination-time", **known)[1].endswith("02:00Z")


@pytest.mark.parametrize("service", ["aws"], indirect=True)
async def test_aws_renews_a_token_the_service_forgot(service: Service) -> None:
    source = notice_source("aws", service.server.url, clock=CLOCK)
    assert await source.poll() is None
    service.server._server._dialect = dialect("aws", FACTS, clock=CLOCK)  # it was restarted
    service.notices = (going(),)
    assert await source.poll() is not None


@pytest.mark.parametrize("service", ["azure"], indirect=True)
async def test_azure_as_the_real_service_does_it(service: Service) -> None:
    target = "/metadata/scheduledevents?api-version=2020-07-01"
    assert service.ask(target)[0] == 400
    assert service.ask("/metadata/scheduledevents", Metadata="true")[0] == 400
    assert json.loads(service.ask(target, Metadata="true")[1])["Events"] == []
    service.notices = (Notice(kind=NoticeKind.INTERRUPTION, seen_s=1.0, deadline_s=1474309787.0),)
    (event,) = json.loads(service.ask(target, Metadata="true")[1])["Events"]
    assert event["EventType"] == "Preempt"
    assert event["EventStatus"] == "Scheduled"
    assert event["NotBefore"] == "Mon, 19 Sep 2016 18:29:47 GMT"
    assert event["Resources"] == ["i-1"]
    compute = json.loads(
        service.ask("/metadata/instance?api-version=2021-02-01", Metadata="true")[1]
    )
    assert compute["compute"]["vmSize"] == "m5.xlarge"


@pytest.mark.parametrize("service", ["gcp"], indirect=True)
async def test_gcp_long_poll(service: Service) -> None:
    base = "/computeMetadata/v1/instance/preempted"
    assert service.ask(base)[0] == 403
    status, body, headers = service.ask(base, Metadata_Flavor="Google")
    assert (status, body, headers["Metadata-Flavor"]) == (200, "FALSE", "Google")
    etag = headers["ETag"]
    waiting = f"{base}?wait_for_change=true&last_etag={etag}"
    # Over its time it answers what was; at a change at once.
    assert service.ask(f"{waiting}&timeout_sec=0", Metadata_Flavor="Google")[1] == "FALSE"
    poll = asyncio.create_task(asyncio.to_thread(service.ask, waiting, Metadata_Flavor="Google"))
    await asyncio.sleep(0.3)
    assert not poll.done()
    service.notices = (going(),)
    status, body, headers = await asyncio.wait_for(poll, 5.0)
    assert (status, body) == (200, "TRUE")
    assert headers["ETag"] != etag
    assert service.ask(waiting, Metadata_Flavor="Google")[1] == "TRUE"
    assert service.ask(f"{base}?wait_for_change=true", Metadata_Flavor="Google")[1] == "TRUE"
    zone = service.ask("/computeMetadata/v1/instance/zone", Metadata_Flavor="Google")[1]
    assert zone == "projects/0/zones/r1-a"


@pytest.mark.parametrize("service", CLOUDS, indirect=True)
async def test_oversized_and_odd_requests(service: Service) -> None:
    assert service.ask("/x", "POST", body=b"y" * (65 << 10))[0] == 413
    assert service.ask("/" + "a" * 70000)[0] == 414
    assert service.ask("/x", **{"Metadata": "true", "Metadata_Flavor": "Google"})[0] in (
        400,
        401,
        404,
    )


RUBBISH = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"7",
    b'{"action": 3}',
    b'{"action": "terminate", "time": "soon"}',
    b'{"action": "terminate", "time": null}',
    b'{"noticeTime": {}}',
    b'{"Events": 7}',
    b'{"Events": [7, null, {}, {"EventType": "Preempt", "NotBefore": "whenever"}]}',
    b'{"Events": [{"EventType": "Preempt", "NotBefore": 12}]}',
    b"true",
    b"\xff\xfe\x00",
    b"TRUE-ish",
]


class _Rubbish(BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.mark.parametrize("cloud", CLOUDS)
async def test_rubbish_is_no_notice(cloud: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Rubbish)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        source = notice_source(cloud, url, clock=CLOCK)
        for body in RUBBISH:
            _Rubbish.body = body
            assert await source.poll() is None, body
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("cloud", CLOUDS)
async def test_unreachable_is_no_notice(cloud: str) -> None:
    assert await notice_source(cloud, "http://127.0.0.1:9", clock=CLOCK).poll() is None
    assert await notice_source(cloud, "http://127.0.0.1:bad", clock=CLOCK).poll() is None
    assert await notice_source(cloud, "nonsense", clock=CLOCK).poll() is None


def test_an_unknown_cloud_is_refused() -> None:
    with pytest.raises(Invalid, match="aws, azure, gcp"):
        notice_source("ibm", "http://127.0.0.1:9", clock=CLOCK)
    with pytest.raises(Invalid):
        dialect("ibm", FACTS, clock=CLOCK)
