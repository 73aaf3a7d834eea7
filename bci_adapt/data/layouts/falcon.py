"""What the files of the FALCON benchmark share: a split in the subject's name, and a mask of what is scored."""

from __future__ import annotations

import re

import xarray as xr

MASKS = {"evaluated": "acquisition/eval_mask"}
"""Rows the benchmark scores; a wider bin is evaluated when all its rows are."""
_SPLIT = re.compile(r"(.+?)[-_](held[-_].+)")


def one_animal(session: xr.Dataset) -> xr.Dataset:
    """Name the animal without the split that its subject id carries, in place; the split goes into ``split``.

    ``MonkeyN-held-in-calib`` is the animal ``MonkeyN`` and the split ``held-in-calib``. The id of the session names the
    split too, because two splits of one day are two files.
    """
    subject, session_id = session.attrs["subject"], session.attrs["session_id"]
    found = _SPLIT.fullmatch(subject)
    animal, split = (found[1], found[2].replace("_", "-")) if found else (subject, "")
    if found:
        rest = session_id.removeprefix(f"sub-{subject}_ses-")
        named = split in rest.replace("_", "-")
        session.attrs |= {
            "subject": animal,
            "session_id": f"sub-{animal}_ses-{rest}" if named else f"sub-{animal}_ses-{rest}_{split}",
        }
    session.attrs["split"] = split
    return session
