"""From a session to the profile of this machine: what is kept, and when what was kept before stays instead."""

from importlib.metadata import version
from pathlib import Path

from mlx_finetune.app.tune.session import Session
from mlx_finetune.app.tune.subject import Subject
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.profile import machine_key, read_profile, remember_tuned
from mlx_finetune.hardware.tuned import TunedSet, system_name
from mlx_finetune.units import counted

INTERRUPTED = "it was interrupted"


def found_set(session: Session, subject: Subject, *, made: float) -> TunedSet:
    """What the session found; ``made`` counts seconds since 1970."""
    rows = session.case.batch_size * session.case.accumulation if session.case else 0
    return TunedSet(
        settings=session.settings,
        made=made,
        system=system_name(),
        mlxft=version("mlx-finetune"),
        subject=f"{subject.name}, {counted(rows, 'row')} a step",
        seconds=round(session.elapsed, 1),
        tried=tuple(session.tried),
        recipe=subject.recipe,
        ended_early=session.ended_early,
    )


def keep(profile_path: Path, machine: Machine, key: str, found: TunedSet) -> TunedSet:
    """Keep ``found`` and return it; where a session that ended early found no more, the set from before stays and is
    returned.

    Raises ``OSError`` or ``RunError`` where the profile cannot be written.
    """
    name = machine_key(machine)
    before = read_profile(profile_path).tuned.get(name, {}).get(key)
    is_usable = before is not None and before.system == found.system
    if before is not None and is_usable and found.ended_early and found.gain <= before.gain:
        return before
    remember_tuned(profile_path, name, key, found)
    return found
