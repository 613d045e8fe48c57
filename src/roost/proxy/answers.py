"""Answers the proxy gives itself: problem JSON, text, or a page that retries for a browser. Pure."""

import html
import json
from dataclasses import dataclass
from http import HTTPStatus

_RETRIED = frozenset((502, 503, 504))


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer without a backend."""

    status: int
    detail: str = ""
    """What happened and what to do, for a person."""
    problem: bool = True
    """Answer with ``application/problem+json``; else text, or a page where the client reads HTML."""
    retry_after_s: int | None = None
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    """A body of its own (then ``content_type`` is its type)."""
    content_type: str = "application/json"


def render(answer: Answer, *, accept: bytes = b"", head_only: bool = False, close: bool) -> bytes:
    """The whole response of ``answer`` for a client that accepts ``accept``."""
    content_type, body = _content(answer, accept)
    lines = [
        f"HTTP/1.1 {answer.status} {_reason(answer.status)}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
    ]
    if answer.retry_after_s is not None:
        lines.append(f"Retry-After: {answer.retry_after_s}")
    lines += [f"{name}: {value}" for name, value in answer.fields]
    if close:
        lines.append("Connection: close")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
    return head if head_only else head + body


FAILED_PROXY = Answer(500, "the proxy failed; its log says why", problem=False)
NOBODY = Answer(503, "no backend can take the request now", problem=False, retry_after_s=1)
UNREACHED = Answer(502, "no backend could be reached", problem=False)
LOST = Answer(502, "the backend closed before it answered", problem=False)


def too_large(limit: int) -> Answer:
    """A body over its bound."""
    return Answer(413, f"the body is larger than {limit} bytes", problem=False)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _content(answer: Answer, accept: bytes) -> tuple[str, bytes]:
    if answer.body is not None:
        return answer.content_type, answer.body
    title = _reason(answer.status)
    if answer.status in _RETRIED and b"text/html" in accept:
        return "text/html; charset=utf-8", _page(title, answer)
    if answer.problem or b"application/json" in accept or b"application/problem+json" in accept:
        problem = {"type": "about:blank", "title": title, "status": answer.status}
        if answer.detail:
            problem["detail"] = answer.detail
        return "application/problem+json", json.dumps(problem).encode()
    return "text/plain; charset=utf-8", f"{answer.status} {title}: {answer.detail}\n".encode()


def _page(title: str, answer: Answer) -> bytes:
    wait_s = answer.retry_after_s or 2
    return (
        "<!doctype html><meta charset=utf-8>"
        f"<meta http-equiv=refresh content={wait_s}><title>{html.escape(title)}</title>"
        "<body style='font-family:system-ui;max-width:40em;margin:4em auto'>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(answer.detail)}</p>"
        f"<p>This page tries again every {wait_s} s.</p>"
    ).encode()
