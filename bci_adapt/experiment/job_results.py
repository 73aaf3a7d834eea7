"""What jobs have written as JSON, read as what it should be: a file with the right seal can still be none of ours."""

from __future__ import annotations

from typing import Any, Required, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from bci_adapt.errors import InputError
from bci_adapt.ground.jobs import Job

Kind = TypeVar("Kind")


class Scores(TypedDict):
    """What a score job writes: records of each table of the results, whose columns `long_table` checks."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    rows: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    trajectories: list[dict[str, Any]]
    blocks: list[dict[str, Any]]


class _ScoreRow(TypedDict):
    metric: str
    phase: str
    value: float | None


class ScoreRows(TypedDict):
    """Of what a score job writes, what a search for settings needs."""

    rows: list[_ScoreRow]


class Drift(TypedDict, total=False):
    """What a drift job writes: measures of a pair of sessions."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    measures: Required[dict[str, dict[str, Any] | float | None]]


Costs = dict[str, float | str | None]
"""What a cost job writes."""


_FAULT = "not what this job writes: remove it, and the same command makes it again"


def read_json(job: Job, kind: type[Kind]) -> Kind:
    """The result of `job` as `kind`; `InputError` names the file that is something else, and its first wrong key."""
    try:
        return TypeAdapter(kind).validate_json(job.path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{job.path}: {f'{where}: ' if where else ''}{first['msg']}; {_FAULT}") from error
