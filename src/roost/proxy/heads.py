"""What a request's head means and what is passed on of it: hop-by-hop rules, framing, forwarding fields.

Heads repeat, so their meaning is memoised by their bytes: this makes the Python part of a request two
to four times cheaper. Never does I/O; never keeps more than ``MEMO_ENTRIES`` heads of ``MEMO_KEY`` bytes.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import Generic, TypeVar

from roost.proxy import framing
from roost.proxy.fields import (
    CODING,
    CONNECTION,
    EXPECT,
    FORWARDING,
    HOST,
    LEARNED,
    LENGTH,
    LINE,
    MEANINGS,
    OURS,
    REQUEST_ID,
    UPGRADE,
    Names,
    Special,
    content_length,
    is_chunked,
    options,
)
from roost.proxy.framing import Body, ChunkedBody, FramingError, LengthBody

MEMO_ENTRIES = 1024
MEMO_KEY = 2 << 10
NOVEL = 256
"""After this many heads in a row that were never seen before, memoising pauses ..."""
PAUSE = 4096
"""... for this many heads."""

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~%!$&'()*+,;=]+)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([/?][^#]*)?", re.IGNORECASE)
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
_NODE = re.compile(
    rb"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9.]+)(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)"
)
"""An address as proxies write it, some with a port."""
_REFUSED_METHODS = frozenset((b"CONNECT", b"TRACE"))


Value = TypeVar("Value")


class Memo(Generic[Value]):
    """A bounded memory of heads by their bytes, which rests while no head repeats."""

    __slots__ = ("entries", "novel", "pause")

    def __init__(self) -> None:
        self.entries: dict[bytes, Value] = {}
        self.novel = 0
        self.pause = 0

    def put(self, key: bytes, value: Value) -> None:
        """Remember."""
        if self.pause or len(key) > MEMO_KEY:
            return
        self.novel += 1
        if self.novel > NOVEL:
            self.novel = 0
            self.pause = PAUSE
        if len(self.entries) >= MEMO_ENTRIES:
            self.entries.clear()
        self.entries[key] = value


_names = Names(
    MEANINGS
    | dict.fromkeys(FORWARDING, OURS)
    | {b"host": HOST, b"expect": EXPECT, b"x-request-id": REQUEST_ID}
)


class Origin:
    """Whom requests come from: what is the same for all of them. One object per client and listener."""

    __slots__ = ("client", "ids", "lines", "listener", "node", "proto", "trusted", "trusts")

    def __init__(
        self,
        client: str,
        *,
        listener: str = "",
        secure: bool = False,
        trusts: Callable[[str], bool] = lambda address: False,
        ids: bool = False,
    ) -> None:
        self.client = client
        """The peer's address."""
        self.listener = listener
        self.proto = b"https" if secure else b"http"
        self.trusts = trusts
        """Whether an address is one of the proxies before us."""
        self.trusted = trusts(client)
        """Its forwarding fields are believed."""
        self.ids = ids
        """Requests get an id of ours where they have no trusted one."""
        address = client.encode()
        self.node = b'"[%b]"' % address if b":" in address else address
        """The peer as a node of the Forwarded field."""
        self.lines = (
            b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nForwarded: for=%b;proto=%b"
            % (
                address,
                self.proto,
                self.node,
                self.proto,
            )
        )


class RequestFields:
    """The meaning of a request's field block. Shared by all requests that have these very bytes."""

    __slots__ = (
        "_index",
        "_tail",
        "_tail_origin",
        "block",
        "chunked",
        "close",
        "has_host",
        "host",
        "keep_alive",
        "kept",
        "length",
        "name",
        "ours",
        "request_id",
        "upgrade",
    )

    _index: dict[bytes, bytes] | None
    _tail: bytes
    _tail_origin: Origin | None
    block: bytes
    kept: bytes
    """The lines passed on, each with its line end, as they came."""
    host: bytes
    """The Host field."""
    name: bytes
    """The host in lower case, without its port."""
    has_host: bool
    length: int
    """Content-Length; 0 when absent."""
    chunked: bool
    close: bool
    keep_alive: bool
    """``Connection: keep-alive`` was asked for (matters to HTTP/1.0)."""
    upgrade: bytes
    """The protocols offered, empty when no upgrade is asked for."""
    ours: tuple[tuple[bytes, bytes], ...]
    """Forwarding fields the client sent."""
    request_id: bytes

    def get(self, name: bytes) -> bytes | None:
        """The value of a field (``name`` in lower case), of several: joined; None when absent."""
        if self._index is None:
            index: dict[bytes, bytes] = {}
            for key, value in framing.split_fields(self.block):
                if key in index:
                    value = index[key] + (b"; " if key == b"cookie" else b", ") + value
                index[key] = value
            self._index = index
        return self._index.get(name)

    def tail(self, origin: Origin) -> bytes:
        """All of a forwarded head after its request line."""
        if self._tail_origin is not origin:
            self._tail = self.lines(self.kept, origin)
            self._tail_origin = origin
        return self._tail

    def lines(self, kept: bytes, origin: Origin, *, has_host: bool = False) -> bytes:
        """``kept`` with the fields of this proxy, and the empty line."""
        host = b"" if self.has_host or has_host else b"Host: localhost\r\n"
        request_id = b""
        if self.request_id and (origin.trusted or not origin.ids):
            request_id = b"X-Request-Id: " + self.request_id + b"\r\n"
        forwarding = _forwarding(self, origin) if self.ours and origin.trusted else origin.lines
        end = b"\r\n\r\n"
        if self.chunked:
            end = b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        elif self.upgrade:
            end = b"\r\nConnection: Upgrade\r\nUpgrade: " + self.upgrade + b"\r\n\r\n"
        shown = b"X-Forwarded-Host: "
        if self.ours and origin.trusted and _first(self.ours, b"x-forwarded-host"):
            return b"".join((kept, host, request_id, forwarding, end))
        return b"".join((kept, host, request_id, shown, self.host, b"\r\n", forwarding, end))


class Request:
    """A request whose head has been read. Shared by requests of one client that have these very bytes."""

    __slots__ = (
        "client",
        "closes",
        "direct",
        "fields",
        "forwarded",
        "has_body",
        "host",
        "http11",
        "idempotent",
        "method",
        "numbered",
        "origin",
        "path",
        "query",
        "request_id",
        "size",
        "target",
        "upgrade",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        http11: bool,
        fields: RequestFields,
        origin: Origin,
        size: int,
    ) -> None:
        self.method = method
        self.target = target
        """Origin form: path and query."""
        self.path, _, self.query = target.partition(b"?")
        if target == b"*":  # of the server as a whole
            self.path = b"/"
        self.http11 = http11
        self.fields = fields
        self.host = fields.name
        """In lower case, without the port."""
        self.origin = origin
        self.client = origin.client
        """The client's address; behind a trusted proxy the one that the proxy says."""
        if origin.trusted and fields.ours:
            self.client = _claimed(fields, origin)
        self.size = size
        """Bytes of the head."""
        self.idempotent = method in _IDEMPOTENT
        """Sending it twice has the effect of sending it once (RFC 9110 section 9.2.2)."""
        self.upgrade = fields.upgrade if http11 else b""
        """The protocols offered, empty when no upgrade is asked for."""
        self.closes = fields.close or not (http11 or fields.keep_alive)
        """The client's connection ends with the answer."""
        self.has_body = fields.chunked or fields.length > 0
        self.direct = http11 and method != b"HEAD"
        """A whole answer with a length can be passed on as it is."""
        self.request_id = fields.request_id if origin.trusted or not origin.ids else b""
        """The one it came with."""
        self.numbered = origin.ids and not self.request_id
        """It gets an id of ours."""
        self.forwarded = b""
        """The head a backend is sent, once made."""

    @property
    def listener(self) -> str:
        """Name of the listener it came in by."""
        return self.origin.listener

    def body(self) -> Body | None:
        """A reader of its body, None when it has none."""
        if self.fields.chunked:
            return ChunkedBody()
        return LengthBody(self.fields.length) if self.fields.length else None

    def forward(self) -> bytes:
        """The head a backend is sent."""
        if not self.forwarded:
            tail = self.fields.tail(self.origin)
            if self.fields.upgrade and not self.http11:
                tail = self.fields.kept + tail[tail.index(b"X-Forwarded-Host") :]
                tail = tail[: tail.index(b"\r\nConnection: Upgrade")] + b"\r\n\r\n"
            self.forwarded = b"%b %b HTTP/1.1\r\n%b" % (self.method, self.target, tail)
        return self.forwarded

    def forward_changed(self, target: bytes, changes: tuple[tuple[bytes, bytes], ...]) -> bytes:
        """The head a backend is sent, with another target and fields set (empty: removed)."""
        # A client's `x_user` must not stand beside our `x-user`: CGI-style servers read both as one.
        names = {name.replace(b"_", b"-") for name, _ in changes}
        kept = [
            line
            for line in self.fields.kept.split(b"\r\n")
            if line and line[: line.index(b":")].lower().replace(b"_", b"-") not in names
        ]
        kept += [name + b": " + value for name, value in changes if value]
        lines = b"".join(line + b"\r\n" for line in kept)
        return b"%b %b HTTP/1.1\r\n%b" % (
            self.method,
            target,
            self.fields.lines(lines, self.origin, has_host=b"host" in names),
        )


_memo: Memo[RequestFields] = Memo()
_requests: Memo[Request] = Memo()


def read_request(head: bytes, origin: Origin) -> Request:
    """The request of a whole head. Raises ``FramingError``."""
    if _requests.pause:
        _requests.pause -= 1
    else:
        known = _requests.entries.get(head)
        if known is not None and known.origin is origin:
            _requests.novel = 0
            return known
    method, target, http11, begin = framing.request_line(head)
    block = head[begin:]
    fields = None
    if _memo.pause:
        _memo.pause -= 1
    else:
        fields = _memo.entries.get(block)
    if fields is None:
        fields = _request_fields(block)
        _memo.put(block, fields)
    else:
        _memo.novel = 0
    if target[:1] != b"/":
        target, fields = _origin_form(method, target, fields)
    if method in _REFUSED_METHODS:
        raise FramingError(501, f"{method.decode()} is not served here")
    if http11 and not fields.host:
        raise FramingError(400, "an HTTP/1.1 request needs a Host field")
    if fields.chunked and not http11:
        raise FramingError(400, "Transfer-Encoding in an HTTP/1.0 request", desync=True)
    request = Request(method, target, http11, fields, origin, len(head))
    _requests.put(head, request)
    return request


def _origin_form(
    method: bytes, target: bytes, fields: RequestFields
) -> tuple[bytes, RequestFields]:
    if method == b"CONNECT":
        return target, fields
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is not None:
        # RFC 9112 section 3.2.2: the target's authority counts, the Host field does not.
        authority: bytes = absolute[1]
        if authority != fields.host:
            lines = [
                line
                for line in fields.block[:-4].split(b"\r\n")
                if line and line[: line.index(b":")].lower() != b"host"
            ]
            fields = _request_fields(b"\r\n".join([b"Host: " + authority, *lines, b"", b""]))
        rest: bytes = absolute[2] or b"/"
        return rest if rest[:1] == b"/" else b"/" + rest, fields
    if target == b"*" and method == b"OPTIONS":
        return target, fields
    raise FramingError(400, "the request target is neither a path nor an http URL")


def _request_fields(block: bytes) -> RequestFields:
    special = Special(block, _names)
    values = special.values
    fields = RequestFields()
    fields.block = block
    fields.kept = special.kept
    fields._index = None
    fields._tail_origin = None
    hosts = values.get(HOST)
    fields.has_host = hosts is not None
    fields.host = fields.name = b""
    if hosts:
        _read_host(fields, hosts)
    fields.length = 0
    fields.chunked = fields.close = fields.keep_alive = False
    fields.upgrade = fields.request_id = b""
    fields.ours = ()
    if len(values) > 1 or not hosts:
        _read_special(fields, values)
    return fields


_host_names: dict[bytes, bytes] = {}
"""Names of Host fields met lately."""


def _read_host(fields: RequestFields, hosts: list[bytes]) -> None:
    if len(hosts) > 1:
        raise FramingError(400, "Host is given more than once", desync=True)
    host = hosts[0]
    name = _host_names.get(host)
    if name is None:
        match = _HOST.fullmatch(host)
        if match is None:
            raise FramingError(400, "Host is not a host name")
        name = match[1].lower()
        if len(host) <= LINE:
            if len(_host_names) >= LEARNED:
                _host_names.clear()
            _host_names[host] = name
    fields.host = host
    fields.name = name


def _read_special(fields: RequestFields, values: dict[int, list[bytes]]) -> None:
    length = content_length(values[LENGTH]) if LENGTH in values else None
    fields.length = length or 0
    fields.chunked = CODING in values and is_chunked(values[CODING], length)
    if EXPECT in values and [v for v in values[EXPECT] if v.lower() != b"100-continue"]:
        raise FramingError(417, "the only expectation served is 100-continue")
    if CONNECTION in values:
        asked = options(values[CONNECTION])
        fields.close = asked.close
        fields.keep_alive = asked.keep_alive
        if asked.upgrade and not (length or fields.chunked):
            upgrade = b", ".join(values.get(UPGRADE, ()))
            fields.upgrade = b"" if b"h2c" in upgrade.lower() else upgrade
    if REQUEST_ID in values:
        ids = values[REQUEST_ID]
        if len(ids) == 1 and len(ids[0]) <= 128:
            fields.request_id = ids[0]
    if OURS in values:
        fields.ours = tuple(
            (name, value)
            for name, value in framing.split_fields(fields.block)
            if name in FORWARDING
        )


def _first(pairs: tuple[tuple[bytes, bytes], ...], name: bytes) -> bytes:
    return b", ".join(value for key, value in pairs if key == name)


def _claimed(fields: RequestFields, origin: Origin) -> str:
    """The client behind a trusted proxy: from the right, the first address that is not a trusted
    proxy's too. What cannot be read ends the walk: nothing left of it can be believed."""
    client = origin.client
    for text in reversed(_first(fields.ours, b"x-forwarded-for").split(b",")):
        match = _NODE.fullmatch(text.strip(b" \t"))
        try:
            client = str(
                ipaddress.ip_address(
                    (match[1] or match[2] or match[3]).decode("ascii") if match else ""
                )
            )
        except ValueError:
            break
        if not origin.trusts(client):
            break
    return client


def _forwarding(fields: RequestFields, origin: Origin) -> bytes:
    """The forwarding fields of a trusted proxy, continued."""
    lines = []
    peer = origin.client.encode()
    for name, own in (
        (b"X-Forwarded-For", peer),
        (b"Forwarded", b"for=" + origin.node + b";proto=" + origin.proto),
    ):
        said = _first(fields.ours, name.lower())
        lines.append(name + b": " + (said + b", " if said else b"") + own)
    proto = _first(fields.ours, b"x-forwarded-proto") or origin.proto
    lines.append(b"X-Forwarded-Proto: " + proto)
    for name in (b"X-Forwarded-Host", b"X-Forwarded-Port", b"X-Forwarded-Prefix", b"X-Real-Ip"):
        said = _first(fields.ours, name.lower())
        if said:
            lines.append(name + b": " + said)
    return b"\r\n".join(lines)
