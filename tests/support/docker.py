"""A Docker engine for tests, where there is one: ``need_engine`` skips and says why where there is not."""

import functools

import pytest

from tools import base_image


@functools.cache
def unusable() -> str:
    """Why tests cannot run containers here; empty when they can. Makes the base image the first time."""
    why = base_image.missing()
    if why:
        return why
    try:
        base_image.make_base()
    except RuntimeError as error:
        return f"no base image: {error}"
    return ""


def need_engine() -> str:
    """The tag of an image with Python. Skips the test where no container can run."""
    why = unusable()
    if why:
        pytest.skip(f"no containers here: {why}")
    return base_image.TAG


def need_web() -> str:
    """The tag of the image of examples/web."""
    return base_image.make_web(need_engine())
