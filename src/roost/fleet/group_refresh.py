"""One step of an instance refresh, or of its rollback. Pure."""

from roost.fleet.group_snapshot import Instruction, Snapshot


def refresh(_snapshot: Snapshot) -> list[Instruction]:
    """What a refresh does next."""
    return []
