"""From an NWB file to a session: choose a layout, read, mask what a rule flags, check, write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bci_adapt.data import binning, faults
from bci_adapt.data.faults import Thresholds
from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.tables import electrodes_used
from bci_adapt.data.nwb import NwbFile, open_nwb, spike_table
from bci_adapt.data.nwb_describing import Description, count_missing, describe
from bci_adapt.data.remote import Remote
from bci_adapt.data.session_files import write_session
from bci_adapt.data.sessions import check, kinematic_names, signed, start_of
from bci_adapt.errors import InputError
from bci_adapt.ground import catalog

PROVENANCE = ("dandiset", "dandiset_version", "asset_path", "licence")
"""What a source can say of a file, beside what the file says itself."""


def inspect(path: Path | str | Remote) -> Description:
    """Describe an NWB file together with the layouts that were tried, the one that would be used, and why.

    `InputError` when the file cannot be opened as NWB 2.
    """
    with open_nwb(path) as file:
        found = _choose(file)[1]
        try:
            count_missing(file, found)
            found.channels = electrodes_used(file)
        except InputError as error:
            found.warnings.append(str(error).removeprefix(f"{file.path}: "))
        return found


def prepare(
    path: Path | str | Remote,
    bin_s: float,
    out: Path | str | None = None,
    layout: str | None = None,
    thresholds: Thresholds | None = None,
    *,
    per: str | None = None,
    spikes: str | None = None,
    targets: Sequence[str] = (),
    unobserved: str | None = None,
    provenance: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Return the session of a file in bins of `bin_s` seconds, and write it to the file `out` when given.

    Parameters
    ----------
    layout : name of one, otherwise the best match is taken.
    per : ``"electrode"`` pools the sorted units of an electrode, ``"unit"`` makes each a channel; None is the layout's.
    spikes, targets : paths inside the file to read as spikes and as kinematics, with the layout ``generic``.
    unobserved : where intervals of observation differ between units, ``"mask"`` (None means it) masks every bin that
        one unit misses, ``"drop"`` leaves out the channels that were observed least (`tables.judge_observed`).
    provenance : attributes that say where the file is from (`dandiset`, `dandiset_version`, `asset_path`, `licence`).

    Values that rules of `faults` flag stay in place with their masks False. `InputError` names the file and what
    cannot be used; nothing is then left at `out`.
    """
    binning.require_bin_width(bin_s)
    if odd := set(provenance or {}) - set(PROVENANCE):
        raise InputError(f"provenance is {', '.join(PROVENANCE)}; got {', '.join(sorted(odd))}")
    if per not in (None, "electrode", "unit"):
        raise InputError(f"a channel is an 'electrode' or a 'unit', got per={per!r}")
    if unobserved not in (None, "mask", "drop"):
        raise InputError(f"bins that a unit misses are 'mask'ed, or the unit 'drop'ped, got unobserved={unobserved!r}")
    with open_nwb(path) as file:
        chosen = _layout(file, layout, spikes, targets)
        file.unobserved = unobserved or "mask"
        given = {"per": per or chosen.per, "spikes": spikes, "targets": [*targets]}
        given |= {"unobserved": unobserved} if unobserved else {}
        try:
            session = chosen.read(file, bin_s, per or chosen.per)
            session.attrs |= dict(provenance or {})
            session.attrs["parameters"] = json.dumps({"bin_s": bin_s, "layout": chosen.name, **given})
            _finish(session, thresholds or Thresholds())
            session = signed(session)
        except InputError as error:
            if str(file.path) in str(error):
                raise
            raise InputError(f"{file.path}: {error}") from error
    if out is not None:
        write_session(session, out)
    return session


def _layout(file: NwbFile, name: str | None, spikes: str | None, targets: Sequence[str]) -> Layout:
    if spikes is not None or targets:
        if name not in (None, "generic"):
            raise InputError(f"paths of spikes and targets go with the layout 'generic', not {name!r}")
        from bci_adapt.data.layouts.generic import Generic

        return Generic(spikes, targets)
    if name is not None:
        return catalog.pick("bci_adapt.data.layouts", Layout, name)()
    chosen, found = _choose(file)
    if chosen is None:
        if "units/spike_times" in file:
            spike_table(file)  # what is wrong with the spikes says more than that no layout fits
        raise InputError(f"{file.path}: {found.why}")
    return chosen


def _choose(file: NwbFile) -> tuple[Layout | None, Description]:
    found = describe(file)
    best: tuple[float, Layout | None] = (0.0, None)
    for name, kind in catalog.variants("bci_adapt.data.layouts", Layout).items():
        layout = kind()
        score, reason = layout.matches(found)
        found.layouts.append({"name": name, "score": float(score), "reason": reason})
        if score > best[0]:
            best = (score, layout)
    found.layouts.sort(key=lambda tried: -tried["score"])
    if best[1] is None:
        reasons = "; ".join(f"{tried['name']}: {tried['reason']}" for tried in found.layouts)
        found.why = f"no layout fits ({reasons})"
        if found.warnings:
            found.why += f"; found on the way: {'; '.join(found.warnings)}"
    else:
        found.chosen = best[1].name
        found.why = f"{found.chosen} would be used: {found.layouts[0]['reason']}"
        if not best[1].verified_on:
            found.why += f" ({best[1].standing()})"
    return best[1], found


def _finish(session: xr.Dataset, thresholds: Thresholds) -> None:
    """Add derived velocity, masks and warnings, and check the result; `InputError` where no neuron is left to use."""
    finish(session, thresholds)
    counts, valid = session["counts"].values, session["valid"].values
    if not valid.any():
        differ = next((each for each in json.loads(session.attrs["warnings"]) if "obs_intervals differ" in each), "")
        raise InputError(
            "neurons are observed in no bin: obs_intervals leave none, or every channel is silent in all"
            + (f" ({differ})" if differ else "")
        )
    usable = counts.any(axis=0) if valid.all() else counts.any(axis=0, where=valid[:, None])
    if np.count_nonzero(usable) < 2:
        raise InputError(
            f"{np.count_nonzero(usable)} of {usable.size} channels ever spike where neurons are observed, "
            "at least two usable channels are needed"
        )
    check(session)


class _Notes:
    """What masking a session comes to: seconds by figure, and warnings in the session's own list."""

    def __init__(self, session: xr.Dataset) -> None:
        self.bin_s, self.warnings, self.figures = float(session.attrs["bin_s"]), session.attrs["warnings"], {}

    def masked(self, name: str, flags: np.ndarray, what: str) -> None:
        """Take down that the bins of `flags` (n_bins,) are masked, and why."""
        self.figures[name] = float(np.count_nonzero(flags) * self.bin_s)
        if flags.any():
            share = 100 * flags.mean()
            self.warnings.append(f"{what}: {self.figures[name]:.1f} s ({share:.1f} % of the bins) masked")


def finish(session: xr.Dataset, thresholds: Thresholds) -> None:
    """Add to a session of raw values, in place, the velocity derived from its position, masks, warnings and figures."""
    notes = _Notes(session)
    segment, counts = session["segment"].values, session["counts"].values
    silent = faults.silent_bins(counts, segment, notes.bin_s, thresholds.silent_s)
    notes.masked("silent_s", silent, f"every channel silent for more than {thresholds.silent_s:g} s")
    session["valid"].values &= ~silent
    if "position" in session:
        _derive_velocity(session)
        _mask_still(session, thresholds, silent, notes)
    for name in kinematic_names(session):
        lost = 0 if name == "velocity" else np.count_nonzero(np.isnan(session[name].values).any(axis=1))
        if lost:
            share = 100 * lost / segment.size
            notes.warnings.append(f"{name} has no value in {lost} of {segment.size} bins ({share:.2g} %)")
        if name.endswith("velocity"):
            _mask_fast(session, name, thresholds, notes)
    figures = notes.figures
    if "velocity" in session and "recorded_velocity" in session and session["recorded_velocity"].dims[1] == "axis":
        figures |= _agreement(session, thresholds, notes.warnings)
    if start_of(session) is None:
        notes.warnings.append(
            f"the session starts in {session.attrs['session_start'][:4]}: its date is anonymised or unknown, and "
            "the days between sessions are unknown"
        )
    session.attrs["quality"] = json.dumps({k: None if np.isnan(v) else round(v, 6) for k, v in figures.items()})
    session.attrs["thresholds"] = json.dumps(asdict(thresholds))
    session.attrs["warnings"] = json.dumps(notes.warnings, ensure_ascii=False)


def _derive_velocity(session: xr.Dataset) -> None:
    unit, dims = str(session["position"].attrs["units"]), ("time", "axis")
    values = session["position"].values, session["segment"].values
    velocity = binning.backward_difference(*values, float(session.attrs["bin_s"]))
    about = {"units": f"{unit}/s" if unit else "", "derived": "(p_i - p_{i-1}) / bin_s"}
    session["velocity"] = dims, velocity, about
    session.coords["velocity_valid"] = dims, np.isfinite(velocity)


def _mask_still(session: xr.Dataset, thresholds: Thresholds, silent: np.ndarray, notes: _Notes) -> None:
    """Mask bins in which the sensor is stuck; an animal at rest stays."""
    position, segment = session["position"].values, session["segment"].values
    unit = str(session["position"].attrs["units"])
    scale = faults.cm_per_unit(unit)
    if scale is None:
        what = f"position has unit {unit!r}, which is no length" if unit else "the unit of position was not given"
        notes.warnings.append(
            f"{what}: no limit in cm/s applies, standing still means no movement at all, and speed is implausible "
            f"where it jumps to {faults.JUMP:g} times its 99th percentile"
        )
    extent = thresholds.still_extent_cm / scale if scale else 0.0
    resting = faults.still_bins(position, segment, notes.bin_s, thresholds.still_s, extent)
    still = faults.stuck_bins(resting, position, segment, silent)
    within = f"cursor within {extent:g} {unit} for more than {thresholds.still_s:g} s".replace("  ", " ")
    notes.masked("still_s", still, f"{within}, its sensor stuck or every channel silent")
    notes.figures["rest_s"] = float(np.count_nonzero(resting & ~still) * notes.bin_s)
    for name in ("position", "velocity", "recorded_velocity"):
        if name in session and session[name].dims[1] == "axis":
            session[f"{name}_valid"].values &= ~still[:, None]


def _mask_fast(session: xr.Dataset, name: str, thresholds: Thresholds, notes: _Notes) -> None:
    """Mask bins of implausible speed: above a limit in cm/s where the unit is known, else where speed jumps."""
    values, segment = session[name].values, session["segment"].values
    scale = faults.cm_per_unit(str(session[name].attrs["units"]))
    if scale:
        limit, what = thresholds.max_speed_cm_s / scale, f"{thresholds.max_speed_cm_s:g} cm/s"
    else:
        limit, what = faults.jump_limit(values), f"{faults.JUMP:g} times its 99th percentile"
        if "derived" not in session[name].attrs:
            notes.warnings.append(
                f"the unit of {name} is not one of speed or not given: no limit in cm/s applies to it"
            )
    if np.isfinite(limit):
        fast = faults.fast_bins(values, segment, limit, thresholds.speed_neighbours)
        notes.masked(f"fast_{name}_s", fast, f"{name} above {what} (± {thresholds.speed_neighbours} bins)")
        session[f"{name}_valid"].values &= ~fast[:, None]


def _agreement(session: xr.Dataset, thresholds: Thresholds, warnings: list[str]) -> dict[str, float]:
    """Correlation and scale of the recorded velocity against the derived one; a warning where they disagree."""
    recorded, velocity = session["recorded_velocity"].values, session["velocity"].values
    both = session["velocity_valid"].values & np.isfinite(recorded)
    correlation, factor = faults.velocity_agreement(recorded, velocity, both)
    units = [faults.cm_per_unit(str(session[name].attrs["units"])) for name in ("recorded_velocity", "velocity")]
    factor *= units[0] / units[1] if units[0] and units[1] else 1.0
    if not correlation >= thresholds.min_agreement or not 0.5 < factor < 2:
        warnings.append(
            f"recorded velocity is not the difference of position (correlation {correlation:.2f}, scale "
            f"{factor:.2f}): prefer velocity, which is derived from position"
        )
    return {"velocity_correlation": correlation, "velocity_scale": factor}


def session_warnings(session: xr.Dataset) -> list[Any]:
    """Return the warnings stored with a session."""
    return json.loads(session.attrs["warnings"])
