"""What every endpoint needs: typed bodies in, JSON and problems out. Holds no rules."""

import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from roost.client.model import Problem, StartJob, StartNotebook
from roost.ports.errors import Invalid
from roost.ports.values import Ask, PurchaseOption

LARGEST_BODY = 1 << 20
STATUS = {
    "invalid": 400,
    "denied": 403,
    "gone": 404,
    "conflict": 409,
    "stale_epoch": 409,
    "retry": 503,
    "no_capacity": 503,
    "never": 422,
}

_KERNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""As Jupyter names kernelspecs."""

T = TypeVar("T")


async def read_bytes(request: Request, most: int) -> bytes:
    """The body. ``Invalid`` when it is over ``most`` bytes."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise Invalid(f"the body is over {most} bytes")
    return bytes(content)


async def read(request: Request, type_: type[T], most: int = LARGEST_BODY) -> T:
    """The typed body. ``Invalid`` says what is wrong with it and where."""
    content = await read_bytes(request, most)
    try:
        return msgspec.json.decode(content or b"{}", type=type_)
    except msgspec.DecodeError as error:
        raise Invalid(f"the body is not what this call takes: {error}") from error


def ask_of(body: StartNotebook | StartJob) -> Ask:
    """The ask of a start request. ``Invalid`` for impossible numbers."""
    if body.vcpus <= 0 or body.memory_gib <= 0 or body.gpus < 0:
        raise Invalid("vcpus and memory_gib must be above zero")
    options = tuple(one_of(PurchaseOption, o, "purchase option") for o in body.purchase_options)
    return Ask(
        vcpus=body.vcpus,
        memory_gib=body.memory_gib,
        gpus=body.gpus,
        clouds=body.clouds,
        regions=body.regions,
        instance_types=body.instance_types,
        purchase_options=options,
        max_usd_hour=body.max_usd_hour,
        near=body.near,
    )


def kernel_of(name: str) -> str:
    """The name of a kernel of another language; empty = Python's own. ``Invalid`` if it cannot be one."""
    if name in ("", "python", "python3", "ipykernel"):
        return ""
    if not _KERNEL.fullmatch(name):
        raise Invalid(f"{name!r} cannot be the name of a kernel", hint="e.g. bash")
    return name


def one_of(kind: Any, text: str, what: str) -> Any:
    """The enum member of ``text``. ``Invalid`` lists the members."""
    try:
        return kind(text)
    except ValueError as error:
        raise Invalid(f"{what} {text!r} is unknown", hint=f"one of {', '.join(kind)}") from error


def answer(value: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def problem(status: int, code: str, detail: str, hint: str = "") -> Response:
    """An error as problem details (RFC 9457)."""
    body = Problem(title=code.replace("_", " "), status=status, detail=detail, code=code, hint=hint)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return Response(
        msgspec.json.encode(body), status, headers, media_type="application/problem+json"
    )
