"""The recorded market that control plays, as ``market_play.py`` wrote it down: needs none of the
libraries that read one."""

import msgspec

from roost.main.settings import StateDir
from roost.market.play import Play
from roost.ports.errors import Invalid


def chosen(state: StateDir) -> Play | None:
    """The market that is played; None when none was chosen. ``Invalid`` for a damaged file."""
    try:
        return msgspec.json.decode(state.played.read_bytes(), type=Play)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise Invalid(
            f"{state.played} cannot be read: {error}", hint="`roost up --market off` removes it"
        ) from error
