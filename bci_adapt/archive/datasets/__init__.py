"""Datasets that are known: one TOML file each in this folder, data and no code; adding a file is all it takes.

A file says what a listing of the archive cannot: which layout reads it, what its channels are on another day, and what
surprises a reader. Its keys are the fields of `Dataset`. Licences are not among them: they are read where a version is
listed, and stored with every session.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bci_adapt.archive.lock import check_version
from bci_adapt.errors import InputError

FOLDER = Path(__file__).parent
Text = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KnownPair(_Strict):
    """A source day and a later target day of one animal: the parts of their session ids that tell them apart."""

    animal: Text
    source: Annotated[str, Field(pattern=r"^\d{8}(_\d{2})?$")]
    target: Annotated[str, Field(pattern=r"^\d{8}(_\d{2})?$")]


class Dataset(_Strict):
    """What is known about a dataset before any of its files is there."""

    title: Text
    where: Text
    """Number of the dandiset, or ``folder`` for recordings that have to be downloaded by hand."""
    url: Annotated[str, Field(pattern=r"^https://[^\s]+$")]
    version_seen: str = ""
    """The published version that this was written for; "" where none was noted."""
    layout: Text
    refused: str = ""
    """Why its files are recognised and not prepared; "" for those that are."""
    channels: Literal["electrode", "unit", "pool", "position", "none"]
    """The policy of `bci_adapt.data.channels` that fits the channels of its sessions."""
    animals: tuple[Text, ...] = ()
    """Subjects as its sessions name them; none where that is not known here."""
    years: tuple[int, int] | None = None
    """First and last year of the recordings; None where that is not known here."""
    kinematics: tuple[Text, ...] = ()
    """Variables of a session that can be decoded, the usual one first."""
    traps: tuple[Text, ...] = ()
    """What surprises a reader of its files, in sentences."""
    pairs: tuple[KnownPair, ...] = ()
    """Pairs worth an experiment; `configs/` holds one for each."""

    @model_validator(mode="after")
    def _possible(self) -> Dataset:
        if self.where != "folder":
            check_version(self.where, *([self.version_seen] if self.version_seen else []))
        if self.years and self.years[0] > self.years[1]:
            raise ValueError(f"years: {self.years[0]} is later than {self.years[1]}")
        for pair in self.pairs:
            if pair.animal not in self.animals:
                raise ValueError(f"pairs: animal {pair.animal!r} is not among animals")
            if pair.source >= pair.target:
                raise ValueError(f"pairs: target {pair.target} is not later than its source {pair.source}")
        if bool(self.refused) == bool(self.kinematics):
            raise ValueError("either kinematics that can be decoded or the reason why it is refused")
        return self


def datasets(folder: Path = FOLDER) -> dict[str, Dataset]:
    """Return the known datasets by name (that of their file), sorted; `InputError` names a file and key at fault."""
    return {path.stem: _read(path) for path in sorted(folder.glob("*.toml"))}


def _read(path: Path) -> Dataset:
    try:
        return Dataset.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        faults = [": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in error.errors()]
        raise InputError(f"{path}: {'; '.join(faults)}") from None
