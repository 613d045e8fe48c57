"""Requests that two parsers could read differently: refused, or passed on unmistakably. RFC 9112, 9110.

Each has two parts: ``safe`` (must: nothing ambiguous reaches the origin, nothing is smuggled) and
``refused`` (a 4xx or 5xx and the connection closed).
"""

import asyncio

from tests.conformance.gateway.wire import CASES, Case, Lane, Run

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"
QUIET_S = 0.5
LINGER_S = 2.0
"""A proxy that lingers (Envoy: 1 s) still closes after an error."""


def _run(raw: bytes, statuses: tuple[int, ...]) -> Run:
    async def run(lane: Lane) -> dict[str, str]:
        client = await lane.client()
        await client.send(raw)
        reply = await client.response(within_s=QUIET_S * 2)
        _, ended = await client.rest(
            LINGER_S if reply.status >= 400 else QUIET_S if reply.refused else 0.05
        )
        await asyncio.sleep(0.01)
        found: dict[str, str] = {}
        whole = [seen for seen in lane.origin.requests if seen.complete or seen.broken]
        for seen in whole:
            if seen.faults:
                found["safe"] = seen.faults
            elif "smuggled" in seen.target:
                found["safe"] = "the hidden request reached the origin"
        if whole and "refused" not in found:
            found["refused"] = f"it was passed on as {whole[0].raw[:100]!r}"
        elif not reply.refused:
            found["refused"] = f"answered {reply.status}"
        elif reply.status == 0 and not ended:
            found["refused"] = "neither an answer nor an end"
        elif reply.status and reply.status not in statuses:
            found["refused"] = f"answered {reply.status}, expected {statuses}"
        elif reply.status and not ended:
            found["refused"] = "the connection stayed open after the error"
        return found

    return run


def hostile(
    id: str,
    raw: bytes,
    rfc: str,
    *,
    refused: str = "should",
    safe: str = "must",
    statuses: tuple[int, ...] = (400,),
) -> None:
    parts = tuple(part for part in (("safe", safe), ("refused", refused)) if part[1])
    CASES.append(Case(id, rfc, parts, _run(raw, statuses)))


def post(lines: bytes, body: bytes = b"hello") -> bytes:
    return b"POST /p HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n" + body


def get(lines: bytes) -> bytes:
    return b"GET /p HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n"


_LENGTHS = {
    "plus": b"+5",
    "minus": b"-5",
    "hex": b"0x5",
    "letters": b"five",
    "decimal": b"5.0",
    "exponent": b"5e0",
    "trailing": b"5x",
    "inner-space": b"5 5",
    "list": b"5, 6",
    "list-same": b"5, 5",
    "list-empty": b"5,",
    "list-lead": b",5",
    "empty": b"",
    "quoted": b'"5"',
    "underscore": b"5_0",
    "semicolon": b"5;x",
    "nul": b"5\x00",
    "vtab": b"\x0b5",
    "formfeed": b"5\x0c",
    "nbsp": b"\xa05",
    "utf8-digit": b"\xd9\xa5",
    "overflow-64": b"18446744073709551621",
    "overflow-63": b"9223372036854775813",
    "overflow-32": b"4294967301x",
    "huge": b"9" * 60,
    "comment": b"5 (x)",
    "crlf-fold": b"\r\n 5",
}
for _name, _value in _LENGTHS.items():
    hostile(
        f"cl-{_name}",
        post(b"Content-Length: " + _value + b"\r\n"),
        "9112-6.3",
        refused="should"
        if _name in ("list-same", "list-empty", "list-lead", "crlf-fold")
        else "must",
        statuses=(400, 413),
    )
hostile("cl-twice", post(b"Content-Length: 5\r\nContent-Length: 6\r\n"), "9112-6.3", refused="must")
hostile("cl-twice-same", post(b"Content-Length: 5\r\nContent-Length: 5\r\n"), "9112-6.3")
hostile(
    "cl-twice-case", post(b"Content-Length: 5\r\ncontent-length: 0\r\n"), "9112-6.3", refused="must"
)
hostile(
    "cl-twice-apart",
    post(b"Content-Length: 0\r\nX-A: b\r\nContent-Length: 5\r\n"),
    "9112-6.3",
    refused="must",
)
hostile("cl-underscore-alone", post(b"Content_Length: 5\r\n", b""), "9112-6.3", refused="")
hostile("cl-space-name", post(b"Content-Length : 5\r\n"), "9112-5.1", refused="must")
hostile("cl-tab-name", post(b"Content-Length\t: 5\r\n"), "9112-5.1", refused="must")
hostile("cl-lead-space", post(b" Content-Length: 5\r\n"), "9112-5.2", refused="should")
hostile("cl-nul-name", post(b"Content-Length\x00: 5\r\n"), "9112-5", refused="must")
hostile("cl-dot-name", post(b"Content\x7fLength: 5\r\n"), "9112-5", refused="must")
hostile(
    "cl-get-hidden", get(b"Content-Length: %d\r\n" % len(SMUGGLED)) + SMUGGLED, "9112-6", refused=""
)

_CODINGS = {
    "xchunked": b"xchunked",
    "chunkedx": b"chunkedx",
    "chunked-identity": b"chunked, identity",
    "identity-chunked": b"identity, chunked",
    "identity": b"identity",
    "chunked-twice": b"chunked, chunked",
    "chunked-gzip": b"chunked, gzip",
    "gzip": b"gzip",
    "gzip-chunked": b"gzip, chunked",
    "quoted": b'"chunked"',
    "quoted-single": b"'chunked'",
    "param": b"chunked;a=b",
    "vtab": b"\x0bchunked",
    "formfeed": b"chunked\x0c",
    "nul": b"chunked\x00",
    "nbsp": b"chunked\xa0",
    "empty": b"",
    "comma": b",",
    "cow": b"cow",
    "inner-space": b"chun ked",
    "split-fold": b"\r\n chunked",
    "fold-after": b"chunked\r\n ",
    "underscored": b"chunked_",
    "bracket": b"[chunked]",
    "cr": b"chunked\r",
    "backslash": b"\\chunked",
    "kelvin": b"chun\xe2\x84\xaaed",
}
for _name, _value in _CODINGS.items():
    # A coding that is unknown may be refused with 501 (section 6.1).
    hostile(
        f"te-{_name}",
        post(b"Transfer-Encoding: " + _value + b"\r\n", CHUNKS),
        "9112-6.1",
        refused="should"
        if "gzip" in _name or "fold" in _name or _name in ("empty", "comma", "param")
        else "must",
        statuses=(400, 411, 501),
    )
_PAIR = b"Content-Length: %d\r\nTransfer-Encoding: %s\r\n"
_HIDDEN = b"0\r\n\r\n" + SMUGGLED
for _name, _value in {
    "chunked": b"chunked",
    "case": b"cHuNkEd",
    "tab": b"\tchunked",
    "xchunked": b"xchunked",
    "identity": b"identity",
    "comma": b"chunked,",
    "trailing-space": b"chunked ",
    "list": b"gzip, chunked",
}.items():
    hostile(
        f"clte-{_name}",
        post(_PAIR % (len(_HIDDEN), _value), _HIDDEN),
        "9112-6.3",
        statuses=(400, 501),
    )
hostile(
    "tecl",
    post(
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"25\r\n" + SMUGGLED + b"\r\n0\r\n\r\n",
    ),
    "9112-6.3",
)
hostile(
    "clte-zero", post(b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", _HIDDEN), "9112-6.3"
)
hostile(
    "te-twice",
    post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", _HIDDEN),
    "9112-6.1",
    statuses=(400, 501),
)
hostile(
    "te-twice-same",
    post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CHUNKS),
    "9112-6.1",
    statuses=(400, 501),
)
hostile(
    "te-space-name", post(b"Transfer-Encoding : chunked\r\n", CHUNKS), "9112-5.1", refused="must"
)
hostile(
    "te-underscore",
    post(b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n"),
    "9112-6",
    refused="",
)
hostile(
    "te-lead-space",
    post(b"X-A: b\r\n Transfer-Encoding: chunked\r\n", CHUNKS),
    "9112-5.2",
    refused="should",
)
hostile(
    "te-lead-tab",
    post(b"X-A: b\r\n\tTransfer-Encoding: chunked\r\n", CHUNKS),
    "9112-5.2",
    refused="should",
)
hostile(
    "te-http10",
    b"POST /p HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
    + CHUNKS,
    "9112-6.1",
    refused="must",
    statuses=(400, 501),
)
hostile(
    "te-http10-alone",
    b"POST /p HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "9112-6.1",
    statuses=(400, 411, 501),
)

# --- lines -------------------------------------------------------------------------------------------

_LINES = {
    "bare-lf": (b"X-A: b\nX-C: d\r\n", "9112-2.2"),
    "bare-lf-hidden": (b"X-A: b\nTransfer-Encoding: chunked\r\n", "9112-2.2"),
    "bare-cr-value": (b"X-A: b\rc\r\n", "9112-2.2"),
    "bare-cr-hidden": (b"X-A: b\rContent-Length: 5\r\n", "9112-2.2"),
    "cr-cr-lf": (b"X-A: b\r\r\n", "9112-2.2"),
    "nul-value": (b"X-A: b\x00c\r\n", "9110-5.5"),
    "nul-name": (b"X\x00A: b\r\n", "9110-5.1"),
    "soh-name": (b"X\x01A: b\r\n", "9110-5.1"),
    "del-name": (b"X\x7fA: b\r\n", "9110-5.1"),
    "utf8-name": (b"X-\xc3\xa9: b\r\n", "9110-5.1"),
    "space-name": (b"X A: b\r\n", "9110-5.1"),
    "tab-name": (b"X\tA: b\r\n", "9110-5.1"),
    "space-colon": (b"X-A : b\r\n", "9112-5.1"),
    "tab-colon": (b"X-A\t: b\r\n", "9112-5.1"),
    "no-colon": (b"X-A\r\n", "9112-5"),
    "no-colon-last": (b"X-B: c\r\nX-A b\r\n", "9112-5"),
    "empty-name": (b": b\r\n", "9112-5"),
    "space-empty-name": (b" : b\r\n", "9112-5"),
    "fold-space": (b"X-A: b\r\n c\r\n", "9112-5.2"),
    "fold-tab": (b"X-A: b\r\n\tc\r\n", "9112-5.2"),
    "fold-empty": (b"X-A: b\r\n \r\n", "9112-5.2"),
    "paren-name": (b"X(A): b\r\n", "9110-5.1"),
    "slash-name": (b"X/A: b\r\n", "9110-5.1"),
    "at-name": (b"X@A: b\r\n", "9110-5.1"),
    "quote-name": (b'"X": b\r\n', "9110-5.1"),
    "equals-name": (b"X=A: b\r\n", "9110-5.1"),
    "bracket-name": (b"[X]: b\r\n", "9110-5.1"),
    "brace-name": (b"{X}: b\r\n", "9110-5.1"),
    "comma-name": (b"X,A: b\r\n", "9110-5.1"),
    "semicolon-name": (b"X;A: b\r\n", "9110-5.1"),
    "less-name": (b"<X>: b\r\n", "9110-5.1"),
    "question-name": (b"X?: b\r\n", "9110-5.1"),
    "backslash-name": (b"X\\A: b\r\n", "9110-5.1"),
}
# nginx accepts these as they are; no framing depends on them, but a strict reader refuses.
_LENIENT = ("bare-lf", "utf8-name", "fold-space", "fold-tab", "fold-empty")
for _name, (_lines, _rfc) in _LINES.items():
    hostile(f"line-{_name}", get(_lines), _rfc, refused="should" if _name in _LENIENT else "must")
_WEAK = {
    "soh-value": b"X-A: b\x01c\r\n",
    "bel-value": b"X-A: b\x07c\r\n",
    "esc-value": b"X-A: b\x1bc\r\n",
    "del-value": b"X-A: b\x7fc\r\n",
    "vtab-value": b"X-A: b\x0bc\r\n",
    "formfeed-value": b"X-A: b\x0cc\r\n",
    "backspace-value": b"X-A: b\x08c\r\n",
}
for _name, _lines in _WEAK.items():
    # RFC 9110 section 5.5: other controls are invalid too, but may be kept inside a safe context.
    hostile(f"line-{_name}", get(_lines), "9110-5.5", safe="should", refused="should")
for _name, _raw in {
    "lf-everywhere": b"GET /p HTTP/1.1\nHost: a\n\n",
    "lf-request-line": b"GET /p HTTP/1.1\nHost: a\r\n\r\n",
    "lf-last": b"GET /p HTTP/1.1\r\nHost: a\r\n\n",
    "lf-before-last": b"GET /p HTTP/1.1\r\nHost: a\n\r\n",
}.items():
    hostile(f"line-{_name}", _raw, "9112-2.2", refused="should")
hostile(
    "line-first-space",
    b"GET /p HTTP/1.1\r\n Host: a\r\nHost: b\r\n\r\n",
    "9112-2.2",
    refused="must",
)
hostile(
    "line-first-tab", b"GET /p HTTP/1.1\r\n\tX: y\r\nHost: b\r\n\r\n", "9112-2.2", refused="must"
)
hostile("line-cr-request", b"GET /p HTTP/1.1\rHost: a\r\n\r\n", "9112-2.2", refused="must")
hostile("line-nul-request", b"GET /p\x00 HTTP/1.1\r\nHost: a\r\n\r\n", "9112-3", refused="must")

# --- chunks ------------------------------------------------------------------------------------------

_BIG = b"5\r\nhello\r\n"
_CHUNKED = {
    "plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "lead-space": b" 5\r\nhello\r\n0\r\n\r\n",
    "lead-tab": b"\t5\r\nhello\r\n0\r\n\r\n",
    "not-hex": b"g\r\nhello\r\n0\r\n\r\n",
    "empty-size": b"\r\nhello\r\n0\r\n\r\n",
    "only-ext": b";x\r\nhello\r\n0\r\n\r\n",
    "inner-space": b"0 5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "overflow-64": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "overflow-96": b"1000000000000000000000005\r\nhello\r\n0\r\n\r\n",
    "negative-64": b"fffffffffffffffb\r\nhello\r\n0\r\n\r\n",
    "nul": b"5\x00\r\nhello\r\n0\r\n\r\n",
    "vtab": b"\x0b5\r\nhello\r\n0\r\n\r\n",
    "quoted": b'"5"\r\nhello\r\n0\r\n\r\n',
    "lf-size": b"5\nhello\r\n0\r\n\r\n",
    "cr-size": b"5\rhello\r\n0\r\n\r\n",
    "lf-data": b"5\r\nhello\n0\r\n\r\n",
    "cr-data": b"5\r\nhello\r0\r\n\r\n",
    "no-end": b"5\r\nhello0\r\n\r\n",
    "long-data": b"5\r\nhelloX\r\n0\r\n\r\n",
    "long-two": b"5\r\nhelloXX0\r\n\r\n",
    "lf-last": b"5\r\nhello\r\n0\n\r\n",
    "lf-final": b"5\r\nhello\r\n0\r\n\n",
    "lf-lf": b"5\r\nhello\r\n0\n\n",
    "ext-lf": b"5;a\nX\r\nhello\r\n0\r\n\r\n",
    "ext-lf-hidden": b"2;\nxx\r\n35\r\nab\r\n0\r\n\r\n" + SMUGGLED,
    "ext-cr": b"5;a\rX\r\nhello\r\n0\r\n\r\n",
    "ext-nul": b"5;a\x00\r\nhello\r\n0\r\n\r\n",
    "ext-cr-hidden": b"5;\r\x0a\x0ahello\r\n0\r\n\r\n",
    "comma": b"5,6\r\nhello\r\n0\r\n\r\n",
    "colon": b"5:6\r\nhello\r\n0\r\n\r\n",
    "dot": b"5.0\r\nhello\r\n0\r\n\r\n",
    "zero-x": b"5\r\nhello\r\n0x0\r\n\r\n",
    "h-suffix": b"5h\r\nhello\r\n0\r\n\r\n",
    "utf8": b"\xef\xbc\x95\r\nhello\r\n0\r\n\r\n",
}
_CHUNK_LENIENT = (
    "lf-size",
    "lf-last",
    "lf-final",
    "lf-lf",
    "lf-data",
    "ext-lf",
    "ext-cr",
    "ext-nul",
)
for _name, _body in _CHUNKED.items():
    hostile(
        f"chunk-{_name}",
        post(b"Transfer-Encoding: chunked\r\n", _body),
        "9112-7.1",
        refused="should" if _name in _CHUNK_LENIENT else "must",
        statuses=(400, 413),
    )
hostile(
    "chunk-ext-huge",
    post(b"Transfer-Encoding: chunked\r\n", b"5;" + b"a" * 70000 + b"\r\nhello\r\n0\r\n\r\n"),
    "9112-7.1.1",
    statuses=(400, 413, 431),
)
hostile(
    "chunk-zeros-huge",
    post(b"Transfer-Encoding: chunked\r\n", b"0" * 70000 + b"5\r\nhello\r\n0\r\n\r\n"),
    "9112-7.1",
    statuses=(400, 413, 431),
)
_TRAILERS = {
    "no-colon": b"X-A\r\n",
    "space-colon": b"X-A : b\r\n",
    "fold": b"X-A: b\r\n c\r\n",
    "nul": b"X-A: b\x00\r\n",
    "lf": b"X-A: b\n",
    "cr": b"X-A: b\rc\r\n",
    "empty-name": b": b\r\n",
    "space-name": b"X A: b\r\n",
}
for _name, _lines in _TRAILERS.items():
    hostile(
        f"trailer-{_name}",
        post(b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n" + _lines + b"\r\n"),
        "9112-7.1.2",
    )
hostile(
    "trailer-huge",
    post(
        b"Transfer-Encoding: chunked\r\n",
        b"5\r\nhello\r\n0\r\n" + b"X-A: " + b"b" * 300_000 + b"\r\n\r\n",
    ),
    "9112-7.1.2",
    statuses=(400, 413, 431),
)


def _trailer_fields(name: bytes) -> Run:
    raw = post(
        b"Transfer-Encoding: chunked\r\n",
        b"5\r\nhello\r\n0\r\n" + name + b": 7\r\n\r\n",
    )

    async def run(lane: Lane) -> dict[str, str]:
        await lane.ask(raw)
        for seen in lane.origin.requests:
            if name.lower() in seen.trailers.lower() and seen.complete:
                return {"safe": f"{name.decode()} was passed on in the trailers"}
            if seen.faults:
                return {"safe": seen.faults}
        return {}

    return run


for _field in (b"Content-Length", b"Transfer-Encoding", b"Host", b"Authorization", b"Trailer"):
    CASES.append(
        Case(
            f"trailer-framing-{_field.decode().lower()}",
            "9110-6.5.1",
            (("safe", "must" if _field[:1] in b"CT" and _field != b"Trailer" else "should"),),
            _trailer_fields(_field),
        )
    )

# --- request lines -----------------------------------------------------------------------------------

_STARTS = {
    "two-spaces": (b"GET  /p HTTP/1.1", (400,)),
    "two-spaces-version": (b"GET /p  HTTP/1.1", (400,)),
    "trailing-space": (b"GET /p HTTP/1.1 ", (400,)),
    "leading-space": (b" GET /p HTTP/1.1", (400,)),
    "tab": (b"GET\t/p\tHTTP/1.1", (400,)),
    "vtab": (b"GET\x0b/p HTTP/1.1", (400,)),
    "space-target": (b"GET /p q HTTP/1.1", (400,)),
    "no-version": (b"GET /p", (400,)),
    "no-target": (b"GET HTTP/1.1", (400,)),
    "version-lower": (b"GET /p http/1.1", (400, 505)),
    "version-2": (b"GET /p HTTP/2.0", (400, 505)),
    "version-3": (b"GET /p HTTP/3.0", (400, 505)),
    "version-0.9": (b"GET /p HTTP/0.9", (400, 505)),
    "version-letters": (b"GET /p HTTP/x.y", (400, 505)),
    "version-long": (b"GET /p HTTP/1.10", (400, 505)),
    "version-short": (b"GET /p HTTP/1", (400, 505)),
    "version-comma": (b"GET /p HTTP/1,1", (400, 505)),
    "version-extra": (b"GET /p HTTP/1.1x", (400, 505)),
    "version-other": (b"GET /p HTPP/1.1", (400, 505)),
    "version-ftp": (b"GET /p FTP/1.1", (400, 505)),
    "method-paren": (b"G(T /p HTTP/1.1", (400, 405, 501)),
    "method-nul": (b"G\x00T /p HTTP/1.1", (400,)),
    "method-utf8": (b"G\xc3\xa9T /p HTTP/1.1", (400, 405, 501)),
    "method-empty": (b" /p HTTP/1.1", (400,)),
    "method-colon": (b"GET: /p HTTP/1.1", (400, 405, 501)),
    "method-slash": (b"GE/T /p HTTP/1.1", (400, 405, 501)),
    "target-relative": (b"GET p HTTP/1.1", (400,)),
    "target-empty-query": (b"GET ?a HTTP/1.1", (400,)),
    "target-fragment": (b"GET #a HTTP/1.1", (400,)),
    "target-star-get": (b"GET * HTTP/1.1", (400, 404, 405)),
    "target-authority-get": (b"GET a:80 HTTP/1.1", (400,)),
    "target-nul": (b"GET /\x00 HTTP/1.1", (400,)),
    "target-del": (b"GET /\x7f HTTP/1.1", (400,)),
    "target-soh": (b"GET /\x01 HTTP/1.1", (400,)),
    "target-cr": (b"GET /\r HTTP/1.1", (400,)),
    "target-scheme": (b"GET ftp://a/p HTTP/1.1", (400, 404, 421, 501)),
    "target-no-host": (b"GET http:///p HTTP/1.1", (400,)),
    "target-userinfo": (b"GET http://u:p@a/p HTTP/1.1", (400,)),
    "target-bad-port": (b"GET http://a:99999999/p HTTP/1.1", (400,)),
}
_START_WEAK = [
    "two-spaces",
    "two-spaces-version",
    "trailing-space",
    "leading-space",
    "tab",
    "target-star-get",
    "target-scheme",
    "target-userinfo",
    "target-bad-port",
    "target-del",
    "target-soh",
    "version-short",
    "target-fragment",
    "method-empty",
    "target-empty-query",
    "version-lower",
    "version-0.9",
    "no-version",
    "method-utf8",
    "method-colon",
]
for _name, (_start, _codes) in _STARTS.items():
    hostile(
        f"start-{_name}",
        _start + b"\r\nHost: a\r\n\r\n",
        "9112-3",
        refused="should" if _name in _START_WEAK else "must",
        statuses=_codes,
    )
hostile("start-connect", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "9110-9.3.6", refused="must",
        statuses=(400, 403, 404, 405, 501))  # fmt: skip
hostile("start-trace", b"TRACE /p HTTP/1.1\r\nHost: a\r\n\r\n", "9110-9.3.8", safe="", refused="may",
        statuses=(403, 405, 501))  # fmt: skip
hostile(
    "start-garbage",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "9112-3",
    refused="should",
)
hostile(
    "start-h2-preface",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "9113-3.4",
    refused="must",
    statuses=(400, 405, 501, 505),
)

# --- Host --------------------------------------------------------------------------------------------

_HOSTS = {
    "missing": (b"", "must"),
    "twice": (b"Host: a\r\nHost: b\r\n", "must"),
    "twice-same": (b"Host: a\r\nHost: a\r\n", "must"),
    "twice-case": (b"Host: a\r\nhOST: b\r\n", "must"),
    "space": (b"Host: a b\r\n", "must"),
    "slash": (b"Host: a/b\r\n", "must"),
    "at": (b"Host: u@a\r\n", "must"),
    "list": (b"Host: a, b\r\n", "should"),
    "nul": (b"Host: a\x00b\r\n", "must"),
    "port-letters": (b"Host: a:b\r\n", "should"),
    "port-two": (b"Host: a:80:80\r\n", "should"),
    "port-sign": (b"Host: a:-80\r\n", "should"),
    "port-huge": (b"Host: a:99999999\r\n", "should"),
    "bracket-open": (b"Host: [::1\r\n", "should"),
    "bracket-close": (b"Host: ::1]\r\n", "should"),
    "bracket-bad": (b"Host: [zz]\r\n", "should"),
    "question": (b"Host: a?b\r\n", "must"),
    "hash": (b"Host: a#b\r\n", "must"),
    "backslash": (b"Host: a\\b\r\n", "must"),
    "quote": (b'Host: "a"\r\n', "must"),
    "less": (b"Host: <a>\r\n", "must"),
    "control": (b"Host: a\x01\r\n", "must"),
    "utf8": (b"Host: \xc3\xa9\r\n", "should"),
    "space-colon": (b"Host : a\r\n", "must"),
    "fold": (b"Host: a\r\n b\r\n", "should"),
    "url": (b"Host: http://a/\r\n", "must"),
    "scheme": (b"Host: http:a\r\n", "should"),
    "percent-bad": (b"Host: a%zz\r\n", "may"),
}
for _name, (_lines, _level) in _HOSTS.items():
    hostile(f"host-{_name}", b"GET /p HTTP/1.1\r\n" + _lines + b"\r\n", "9112-3.2", refused=_level)
