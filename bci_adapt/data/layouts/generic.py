"""Any file: spike times or binned counts wherever they are, and the likeliest kinematics, with the choice explained."""

from __future__ import annotations

import re
from collections.abc import Sequence

import xarray as xr

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.reading import Target, read_continuous, read_rows
from bci_adapt.data.nwb import MATLAB, NwbFile
from bci_adapt.data.nwb_describing import Description, Neural, Series, describe
from bci_adapt.data.sessions import reserved
from bci_adapt.ground.catalog import unknown

_ROOTS = ("processing/", "acquisition/", "analysis/", "")


class Generic(Layout):
    """Units with spike times, else binned counts; a position first, then a velocity and every other spatial series.

    `spikes` and `targets` are paths inside the file (``units`` or a series of counts; kinematic series) that take the
    place of what would be found. Several series of one column in one container are the axes of one target. A row of
    binned counts is taken as stamped with the start of its bin. Velocity is derived from the position.
    """

    name = "generic"
    verified_on = "one mouse recording of the pynapple test data"

    def __init__(self, spikes: str | None = None, targets: Sequence[str] = ()) -> None:
        self.spikes, self.targets = spikes, tuple(targets)

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        if description.nwb_version == MATLAB:
            return 0.0, f"a {MATLAB} file, not NWB"
        source = self._source(description)
        if source is None:
            return 0.0, "no units with spike times and no binned counts"
        spikes = "units with spike times" + (f" in {source.path}" if source.path != "units" else "")
        what = source.path if source.kind != "spike times" else spikes
        targets = self._targets(description)
        if not targets and (others := [*description.unusable, *(series.path for series in description.series)]):
            return 0.0, f"{what}, but none of {', '.join(sorted(others))} is surely a kinematic: name one with --target"
        lost = [path for path in description.unusable if kind_of(path) == "position"]
        if lost and not any(target.name == "position" for target in targets):
            return 0.0, f"{what}, but {', '.join(lost)} cannot be used; name a target with --target to do without it"
        if not targets:
            return 0.1, f"{what} and no kinematics: a session without labels"
        where = "; ".join(f"{target.name} from {', '.join(target.paths)}" for target in targets)
        return 0.3, f"{what}; {where}"

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        description = describe(file)
        source = self._source(description)
        if source is None:
            raise file.error("units, processing, acquisition, analysis", "hold neither spike times nor binned counts")
        targets = self._targets(description)
        if source.kind == "spike times":
            file.units = source.path
            return read_continuous(self, file, bin_s, per, targets)
        return read_rows(
            self, file, bin_s, per, targets, edge="start", clock=source.path, counts=source.path, resample=True
        )

    def _source(self, description: Description) -> Neural | None:
        usable = [source for source in description.neural if source.kind != "voltage"]
        if self.spikes is not None:
            paths = {source.path: source for source in usable}
            if self.spikes not in paths:
                raise description.error(unknown(self.spikes, list(paths), "source of spikes"))
            return paths[self.spikes]
        usable.sort(key=lambda each: (each.kind != "spike times", each.path != "units", _place(each.path), each.path))
        return usable[0] if usable else None

    def _targets(self, description: Description) -> list[Target]:
        if self.targets:
            known = {series.path: series for series in description.series}
            for path in self.targets:
                if path not in known:
                    raise description.error(unknown(path, list(known), "target"))
            return _named([known[path] for path in self.targets])
        position = _position(description)
        taken = {path for target in position for path in target.paths}
        rest = [
            series
            for series in description.series
            if series.path not in taken
            and (series.type == "SpatialSeries" or kind_of(series.path) == "recorded_velocity")
        ]
        return [*position, *_unlike(position, rest)]


def kind_of(path: str) -> str:
    """What a series is by its name and container: ``position``, ``recorded_velocity``, or its own name as a word."""
    container, _, name = path.rpartition("/")
    container = container.rpartition("/")[2].lower()
    if _says(name, "vel", "velocity") or container == "velocity":
        return "recorded_velocity"
    if container == "position" or _says(name, "pos", "position"):
        return "position"
    return re.sub(r"\W+", "_", name).strip("_").lower() or "series"


def _says(name: str, *wanted: str) -> bool:
    """Whether a name has one of the `wanted` as a word: ``hand_pos`` and ``HandPos2`` say pos, exposure does not."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return bool({*re.split(r"[\W_\d]+", spaced.lower())} & {*wanted})


def _place(path: str) -> int:
    return next(i for i, root in enumerate(_ROOTS) if path.startswith(root))


def _position(description: Description) -> list[Target]:
    """The series that make up a position: best container first, eyes last, then alphabetical order of paths."""

    def rank(series: Series) -> int:
        container, _, name = series.path.rpartition("/")
        if container.rpartition("/")[2].lower() == "position":
            return 0
        return 1 if _says(name, "pos", "position") and series.type in ("SpatialSeries", "TimeSeries") else 2

    ranked = sorted(
        (rank(series), _says(series.path, "eye", "gaze"), _place(series.path), series.path, series)
        for series in description.series
    )
    if not ranked or ranked[0][0] == 2:
        return []
    best = ranked[0][-1]
    chosen = [best]
    if ranked[0][0] == 0 and (len(best.shape) == 1 or best.shape[1] == 1):
        container = best.path.rpartition("/")[0]
        chosen = [
            series
            for level, _, _, path, series in ranked
            if level == 0 and path.rpartition("/")[0] == container and series.shape == best.shape
        ]
    return [Target("position", tuple(series.path for series in chosen), required=True)]


def _unlike(position: list[Target], rest: list[Series]) -> list[Target]:
    """The other series, each under a name of its own: one velocity, the others by the names they have."""
    targets: list[Target] = []
    names = {target.name for target in position}
    for series in sorted(rest, key=lambda each: (_place(each.path), each.path)):
        name = kind_of(series.path)
        if name in names:
            name = re.sub(r"\W+", "_", series.path.rpartition("/")[2]).strip("_").lower()
        if reserved(name):
            name = f"series_{name}"
        if name and name not in names and not reserved(name):
            names.add(name)
            targets.append(Target(name, (series.path,)))
    return targets


def _named(chosen: list[Series]) -> list[Target]:
    """Targets named by the caller: series of one column that are alike are the axes of one, others stand alone."""
    kinds = {kind_of(each.path) if kind_of(each.path) in _KNOWN else "target" for each in chosen}
    columns = all(len(each.shape) == 1 or each.shape[1] == 1 for each in chosen)
    if len(chosen) > 1 and columns and len(kinds) == 1 and len({each.shape[0] for each in chosen}) == 1:
        return [Target(kinds.pop(), tuple(each.path for each in chosen), required=True)]
    targets = _unlike([], chosen)
    return [Target(target.name, target.paths, required=True) for target in targets]


_KNOWN = ("position", "recorded_velocity")
