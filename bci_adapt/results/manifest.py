"""What a run says about itself: ``manifest.json``, as the run writes it and every reader of its folder takes it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Required

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import TypedDict

from bci_adapt.errors import InputError
from bci_adapt.ground.storage import file_digest

MANIFEST, RESULTS = "manifest.json", "results.nc"
_CLOSED = ConfigDict(extra="forbid")


class SessionEntry(TypedDict, total=False):
    """A recording, as it was prepared."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    session_id: Required[str]
    date: str
    minutes: float
    n_channels: int
    layout: str
    source_file: str
    source_sha256: str
    licence: str
    dandiset: str
    dandiset_version: str
    asset_path: str
    warnings: list[str]
    valid_fraction: float
    has_targets: bool
    n_axes: dict[str, int]
    has_trials: bool
    half_s: float


class DatasetEntry(TypedDict):
    """A published dataset that recordings are from."""

    dandiset: str
    version: str
    archive: str
    licence: str
    authors: list[str]
    citation: str


class PairEntry(TypedDict):
    """A pair of sessions that could not be scored, and why."""

    source: str
    target: str
    reason: str


class FailedJob(TypedDict, total=False):
    """A job that raised."""

    label: Required[str]
    error: Required[str]
    traceback: str


class JobCounts(TypedDict):
    """What was done for a run: jobs executed, reused, and those that failed."""

    executed: int
    reused: int
    failed: list[FailedJob]


class Rerun(TypedDict):
    """A later call that came to the same folder."""

    created: str
    command: str
    executed: int
    reused: int


class Changed(TypedDict):
    """Channels of a target that its source's decoder does without."""

    zeroed: list[str]
    left_out: list[str]


class ChannelEntry(TypedDict):
    """How the channels of a source and its targets were matched."""

    source: str
    policy: str
    n_channels: int
    removed: list[str]
    targets: dict[str, Changed]


class ColumnsEntry(TypedDict, total=False):
    """Whether the columns of a session are those of the others, by the counts: ``same``, ``partly``, ``foreign`` or
    ``cannot say``, in words, the agreement with the session that it agrees with best, and columns that fit another
    channel.
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    session: Required[str]
    verdict: Required[str]
    sentence: Required[str]
    best: dict[str, Any] | None
    moved: dict[str, str]


class DriftEntry(TypedDict, total=False):
    """Measures of drift of a pair: by name, ``{value, low, high}`` and what goes with them."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    source: Required[str]
    target: Required[str]
    measures: Required[dict[str, dict[str, Any]]]


class CostEntry(TypedDict, total=False):
    """What a live bin costs an arm, in microseconds and bytes."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    arm: Required[str]
    cell: Required[str]
    p50_us: float | None
    p95_us: float | None
    p99_us: float | None
    empty_loop_us: float | None
    machine: str
    state_bytes: float | None
    peak_bytes: float | None
    bin_s: float | None


class TuningEntry(TypedDict, total=False):
    """Tuned values: the file, the whole surface, what is best on it, what was used, and what was not tuned."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    file: Required[str]
    digest: Required[str]
    seeds: list[int]
    notes: list[str]
    surface: Required[list[dict[str, Any]]]
    chosen: Required[list[dict[str, Any]]]
    used: list[dict[str, Any]]
    untuned: list[dict[str, str]]


class Primary(TypedDict):
    """The comparison declared before looking."""

    arm: str
    cell: str
    against: str
    against_cell: str


class Manifest(BaseModel):
    """A run's manifest. What is not known of a smaller run is empty; a key that is none of these is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    name: str
    command: str = ""
    created: str = ""
    config: dict[str, Any] = {}
    delay_bins: int | None = None
    rates_tuned: bool = False
    tuned_for: dict[str, list[Any]] = {}
    versions: dict[str, str] = {}
    sessions: list[SessionEntry] = []
    datasets: list[DatasetEntry] = []
    notes: list[str] = []
    unscorable: list[PairEntry] = []
    channels: list[ChannelEntry] = []
    columns: list[ColumnsEntry] = []
    primary_bins: str = ""
    drift: list[DriftEntry] = []
    costs: list[CostEntry] = []
    tuning: TuningEntry | None = None
    primary: Primary | None = None
    not_tested: list[dict[str, str]] = []
    unfit: list[dict[str, str]] = []
    own_decoders: list[dict[str, str]] = []
    lock: dict[str, Any] = {}
    jobs: JobCounts = {"executed": 0, "reused": 0, "failed": []}
    reruns: list[Rerun] = []
    files: dict[str, str] = {}
    content: str = ""

    @property
    def primary_pair(self) -> tuple[tuple[str, str], tuple[str, str]] | None:
        """The declared comparison as two arms, each by name and cell; None where none was declared."""
        declared = self.primary
        if declared is None:
            return None
        return (declared["arm"], declared["cell"]), (declared["against"], declared["against_cell"])

    def text(self) -> str:
        """The text of its file, with the digest of everything else in it as `content`."""
        return self.model_copy(update={"content": own_digest(self)}).model_dump_json(indent=2)

    def of_files(self, folder: Path, names: Iterable[str]) -> Manifest:
        """The same manifest with the digests of these files of the run's folder."""
        return self.model_copy(update={"files": {name: file_digest(folder / name) for name in names}})

    def require_whole(self, folder: Path) -> None:
        """`InputError` naming a file of the run's folder that is not as the run wrote it."""
        for name, digest in self.files.items():
            path = folder / name
            if not path.is_file() or file_digest(path) != digest:
                what = "is missing" if not path.is_file() else "was damaged or changed since the run wrote it"
                raise InputError(f"{path}: {what}; run the experiment again: what it was made of is in the cache")


def own_digest(model: BaseModel) -> str:
    """SHA-256 of all that a model says but its own `content`, as compact JSON: one changed by hand is told by it.

    Python writes a number with the fewest digits that give it again, so reading and writing changes none.
    """
    return hashlib.sha256(model.model_dump_json(exclude={"content"}).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """A run's ``manifest.json``; `InputError` says which file, and which key of it is not what it should be."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the folder of a run, with {MANIFEST} and {RESULTS} in it")
    try:
        found = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
        if found.content not in ("", own_digest(found)):  # a manifest of an older version has none
            raise InputError(f"{path}: was damaged or changed since the run wrote it; run the experiment again")
        return found.model_copy(update={"content": ""})
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error}); run the experiment again") from error
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise InputError(f"{path}: not valid JSON ({first['msg']}); run the experiment again") from error
        where = ".".join(map(str, first["loc"]))
        said = f"{where}: {first['msg']}" if where else first["msg"]
        raise InputError(f"{path}: not the manifest of a run: {said}; run the experiment again") from error
