"""A draft of a dandiset changes: a lock pins one state of it, and one run reads one state."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from bci_adapt.archive.listing import Row
from bci_adapt.archive.lock import DRAFT, Asset
from bci_adapt.errors import InputError


class Mixture(InputError):
    """What is meant would take files of two states of a draft."""


def refuse_mixture(
    dandiset: str, lock: Path, meant: Iterable[str], pinned: Collection[str], drift: Mapping[str, str]
) -> None:
    """`Mixture` when a path that is `meant` is not one of those `pinned`, of a draft that has moved as `drift` says."""
    if new := [path for path in meant if path not in pinned]:
        moved = ", ".join(f"{path} was {what}" for path, what in [*drift.items()][:3])
        raise Mixture(
            f"{dandiset}/{DRAFT} has moved since {lock} pinned it ({moved}), and {new[0]!r} is not pinned: one run "
            "does not mix two states of a draft; --update moves to what it is now"
        )


def refuse_two_states(lock: Path, used: Iterable[Asset], rows: Iterable[Row], drift: Mapping[str, str]) -> None:
    """`Mixture` when the draft never had all assets of a lock that are `used` at one time: one that it still has came
    after another had been replaced by what stands in its place in `rows`.
    """
    now = {row.path: row for row in rows}
    there, gone = [], []
    for asset in used:
        row = now.get(asset.path)
        if row is None or (moment := _moment(row)) is None:
            continue
        if row.asset_id == asset.asset_id:
            there.append((moment, asset))
        elif drift.get(asset.path) == "replaced":
            gone.append((moment, asset))  # at the latest: what replaced it may have been replaced, too
    if there and gone and (new := max(there))[0] > (old := min(gone))[0]:
        raise Mixture(
            f"{lock}: pins two states of {new[1].dandiset}/{DRAFT}: {new[1].path} came {new[0]:%Y-%m-%d %H:%M}, after "
            f"{old[1].path} as it is pinned had been replaced ({old[0]:%Y-%m-%d %H:%M}); one run does not mix them: "
            "fetch with --update moves all that the lock pins to what the draft is now"
        )


def _moment(row: Row) -> datetime | None:
    """When an asset was made, which the archive tells; None where it does not."""
    try:
        moment = datetime.fromisoformat(row.created)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def moved(pinned: Iterable[Asset], rows: Mapping[str, Row], lock: Path) -> tuple[list[Asset], list[str]]:
    """What a lock pins of a draft as the draft is now, without what has gone from it; and notes of the differences."""
    were, now = {asset.path: asset for asset in pinned}, []
    for path, old in were.items():
        with suppress(KeyError, InputError):  # gone from the draft, or not to be used any more
            now.append(rows[path].asset(old.dandiset, DRAFT))
    changed = [asset.path for asset in now if not asset.same_bytes(were[asset.path])]
    lost = sorted(were.keys() - {asset.path for asset in now})
    notes = []
    for paths, what in ((changed, "which moves too"), (lost, "which has gone from the draft and leaves the lock")):
        if paths:
            named = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
            notes.append(f"{lock} pins more of {were[paths[0]].dandiset}/{DRAFT}, {what}: {named}")
    return now, notes
