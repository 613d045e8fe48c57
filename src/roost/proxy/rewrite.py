"""What changes on the way: the target, fields of requests and answers, redirects' addresses.

Compiled once per snapshot; what can be encoded before is. A rewritten Location is never guessed: a route
that strips a prefix leaves the backend's own redirects alone. Never does I/O.
"""

import re
from typing import TYPE_CHECKING

from roost.proxy import cookies, policy
from roost.proxy.heads import Request
from roost.proxy.plan import Pairs

if TYPE_CHECKING:
    from roost.proxy.upstream import Upstream

MEMO_ENTRIES = 1024
"""Targets and Cookie fields whose rewritten form is remembered, per route."""
MEMO_KEY = 512
"""Longer ones are not."""

NOT_SET = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "forwarded",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-real-ip",
    )
)
"""Fields that say how a message is framed or whom it comes from: the proxy's alone."""

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")


def field_problem(name: str, value: str) -> str | None:
    """Why a field may not be set by a route; None when it may."""
    if _NAME.fullmatch(name) is None:
        return f"{name!r} is not a field name"
    if name.lower().replace("_", "-") in NOT_SET:
        return f"{name!r} is the proxy's own: routes cannot set it"
    if _VALUE.fullmatch(value) is None:
        return f"the value of {name!r} has a control character"
    return None


def _pairs(fields: dict[str, str]) -> Pairs:
    return tuple((name.lower().encode(), value.strip().encode()) for name, value in fields.items())


class Sticky:
    """Keeps a client on its backend by a cookie."""

    __slots__ = ("_secure", "_values", "name")

    def __init__(self, name: str, *, secure: bool) -> None:
        self.name = name.encode()
        self._secure = secure
        self._values: dict[bytes, Pairs] = {}

    def key(self, request: Request) -> bytes:
        """The backend a request asks for; empty when it asks for none."""
        header = request.fields.get(b"cookie")
        return (cookies.read(header, self.name) or b"") if header else b""

    def set(self, request: Request, upstream: "Upstream") -> Pairs:
        """The cookie for a client that does not have this backend's yet."""
        wanted = upstream.sticky_id
        if self.key(request) == wanted:
            return ()
        pairs = self._values.get(wanted)
        if pairs is None:
            value = cookies.sticky_value(self.name, wanted, secure=self._secure)
            if len(self._values) >= MEMO_ENTRIES:
                self._values.clear()
            pairs = self._values[wanted] = ((b"set-cookie", value),)
        return pairs


class RouteRewriter:
    """The changes of one route (implements ``plan.Rewriter``)."""

    __slots__ = (
        "_add",
        "_cookies",
        "_hidden",
        "_request",
        "_response",
        "_sticky",
        "_strip",
        "_targets",
    )

    def __init__(
        self, rewrite: policy.Rewrite, *, sticky: Sticky | None = None, hidden: str = ""
    ) -> None:
        """``hidden`` is a cookie that backends do not get to see."""
        self._strip = _prefix(rewrite.strip_prefix)
        self._add = (rewrite.add_prefix or "").rstrip("/").encode()
        fields = _pairs(rewrite.request_headers)
        if rewrite.host:
            fields += ((b"host", rewrite.host.encode("ascii")),)
        self._request = fields
        self._response = _pairs(rewrite.response_headers)
        self._sticky = sticky
        self._hidden = hidden.encode()
        self._targets: dict[bytes, bytes] = {}
        self._cookies: dict[bytes, Pairs] = {}

    def request(self, request: Request) -> tuple[bytes, Pairs]:
        """See ``plan.Rewriter``."""
        target = request.target
        if (self._strip is not None or self._add) and target != b"*":
            known = self._targets.get(target)
            target = self._rewritten(target) if known is None else known
        if self._hidden:
            header = request.fields.get(b"cookie")
            if header and self._hidden in header:
                return target, self._request + self._shown(header)
        return target, self._request

    def response(self, request: Request, upstream: "Upstream") -> Pairs:
        """See ``plan.Rewriter``."""
        if self._sticky is None:
            return self._response
        return self._response + self._sticky.set(request, upstream)

    def _rewritten(self, target: bytes) -> bytes:
        made = target
        if self._strip is not None:
            match = self._strip.match(made)
            if match is not None:
                # One slash: `//host` would be read as an authority by some.
                made = b"/" + made[match.end() :].lstrip(b"/")
        if self._add:
            made = self._add + made
        if len(target) <= MEMO_KEY:
            if len(self._targets) >= MEMO_ENTRIES:
                self._targets.clear()
            self._targets[target] = made
        return made

    def _shown(self, header: bytes) -> Pairs:
        pairs = self._cookies.get(header)
        if pairs is None:
            pairs = ((b"cookie", cookies.without(header, self._hidden)),)
            if len(header) <= MEMO_KEY:
                if len(self._cookies) >= MEMO_ENTRIES:
                    self._cookies.clear()
                self._cookies[header] = pairs
        return pairs


def _prefix(prefix: str | None) -> re.Pattern[bytes] | None:
    """Finds ``prefix`` at the beginning of a target, however its letters are escaped."""
    text = (prefix or "").strip("/")
    if not text:
        return None
    letters = [
        b"/" if byte == 0x2F else b"(?:%s|(?i:%%%02x))" % (re.escape(bytes((byte,))), byte)
        for byte in text.encode()
    ]
    return re.compile(b"/" + b"".join(letters) + rb"(?=[/?]|\Z)")


class Location:
    """The address a redirect sends its client to."""

    __slots__ = ("_host", "_path", "_scheme")

    def __init__(self, redirect: policy.Redirect) -> None:
        self._scheme = redirect.scheme
        self._host = redirect.host
        self._path = redirect.path

    def of(self, request: Request) -> str:
        """For one request. Without scheme and host it is relative: a client's Host is not repeated."""
        path, query = request.path.decode("latin-1"), request.query.decode("latin-1")
        if self._path is None:
            target = f"{path}?{query}" if query else path
        else:
            parts = {"{path}": path, "{query}": query}
            target = re.sub(r"\{(?:path|query)\}", lambda found: parts[found[0]], self._path)
            target = target.removesuffix("?")
        # `//elsewhere` would be another host's address: nobody may choose where a redirect leads.
        target = "/" + target.lstrip("/\\")
        if self._scheme is None and self._host is None:
            return target
        # A changed scheme has another port: the request's own is of no use.
        own = request.fields.host if self._scheme is None else request.host
        host = self._host if self._host is not None else own.decode("latin-1")
        return f"{self._scheme or _scheme(request)}://{host}{target}"


def _scheme(request: Request) -> str:
    """What the client spoke; behind a trusted proxy what that proxy says."""
    origin = request.origin
    if origin.trusted:
        for name, value in request.fields.ours:
            if name == b"x-forwarded-proto" and value.lower() in (b"http", b"https"):
                return value.lower().decode()
    return origin.proto.decode()
