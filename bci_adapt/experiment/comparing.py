"""Every way of adapting on a few sessions of one subject, with a report, from files or from a notebook."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import xarray as xr

from bci_adapt.data.any_file import BIN_S
from bci_adapt.data.binning import bin_ticks
from bci_adapt.data.guarded_reading import bins_of, is_recording
from bci_adapt.decoders.settings import require_numbers
from bci_adapt.errors import InputError
from bci_adapt.experiment.building import Builder
from bci_adapt.experiment.config import Config, parse_config
from bci_adapt.experiment.foreign import Foreign
from bci_adapt.experiment.pairs import Pair
from bci_adapt.ground.engine import execute
from bci_adapt.ground.storage import cache_root, file_digest

if TYPE_CHECKING:
    import pandas as pd

# Beside the standing arms; rates are not tuned, one thing varies at a time.
ARMS = (
    {"rule": "immediate", "optimizer": "rmsprop"},
    {"rule": "window", "steps": 1, "optimizer": "rmsprop"},
    {"rule": "immediate", "optimizer": "rmsprop", "average": 0.999},
    {"rule": "immediate", "optimizer": "rmsprop", "normaliser": "fixed"},
    {"rule": "immediate", "optimizer": "sgd", "learning_rate": 1e-3},
    {"rule": "window", "steps": 4, "optimizer": "rmsprop"},
)
QUICK: dict[str, Any] = {
    "network": {
        "n_hidden": 16, "n_updates": 200, "oracle_updates": 200, "joint_updates": 200, "tune_updates": 50,
        "warm_up_s": 30.0,
    },
    "sweeps": {"arms": []},
    "controls": {"cold": False, "costs": False, "channels": False},
}  # fmt: skip
MIN_HELD_OUT_S = 60.0


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` found: the long table of all scores, the report, the folder of the run they are in, and what is to
    be known of the recordings.
    """

    rows: pd.DataFrame
    report: Path
    folder: Path
    notes: Sequence[str] = ()

    def __repr__(self) -> str:
        rows = self.rows
        counted = (rows["metric"] == "r2") & (rows["study"] == "") & rows["phase"].isin(["online", "held_out"])
        means = rows[counted].pivot_table(index=["arm", "cell"], columns="phase", values="value", aggfunc="mean")
        table = means.sort_values("held_out", ascending=False).round(3).to_string(na_rep="–")
        said = "".join(f"note: {text}\n" for text in self.notes)
        return f"{said}R², mean over targets and seeds\n{table}\nreport: {self.report}"


@dataclass(frozen=True)
class Present(Foreign):
    """A user's decoder that lives in this process, class or instance: of a notebook, which no worker could import. It
    is run here, before everything else, on what the jobs of the other arms run on, and its predictions enter the score
    jobs as files.
    """

    decoder: Any = None

    def delay_s(self, asked_s: float) -> float:
        """See `Foreign.delay_s`."""
        from bci_adapt.decoders.own import knows_delay

        return asked_s if knows_delay(self.decoder) else 0.0

    def predictions(self, builder: Builder, pair: Pair, seed: int, permutation: int | None) -> Path:
        """Train a copy on the pair's sources and lead it through the target; the file of its predictions."""
        from bci_adapt.data.labelled import load_arrays, permuted_in_time
        from bci_adapt.decoders.own import led
        from bci_adapt.protocol.prequential import prequential
        from bci_adapt.protocol.supervision import Teaching, stream_of

        config, jobs = builder.config, [builder.sessions[name] for name in (*pair.sources, pair.target)]
        for failure in execute(jobs, workers=0).failed:
            raise InputError(failure.message) if failure.is_input_error else RuntimeError(failure.error)
        *sources, target = (load_arrays(job.path, config.variables, config.target_lag_bins) for job in jobs)
        decoder = led(self.decoder, bin_s=config.bin_s, label_delay_s=config.label_delay_s, seed=seed)
        decoder.fit(sources)
        stream = stream_of(target, Teaching())
        if permutation is not None:
            stream = stream.with_counts(permuted_in_time(target.X, permutation))
        n_stream = target.n_stream(config.stream_s)
        found = prequential(decoder, stream, n_stream, label_delay_s=config.label_delay_s)
        return _kept(f"{self.name}_{pair.target}", ".npz", found.save)


def compare(
    sessions: Sequence[xr.Dataset | Path | str],
    target: str | None = None,
    *,
    decoders: Mapping[str, Any] | None = None,
    bin_s: float | None = None,
    stream_s: float = 600.0,
    label_delay_s: float = 0.5,
    cells: Sequence[str] | None = None,
    seeds: int | None = None,
    quick: bool = False,
    by: str | None = None,
    missing: str = "refuse",
    axes: Mapping[str, Sequence[str]] | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare every way of adapting: trained on the first session, tried on each later one, with controls and a report.

    The same as ``bci-adapt compare``: the beginning of a target is the adaptation stream, the rest is held out; ten
    minutes or more a session are needed for scores that mean something. What has been computed once is not again.

    Parameters
    ----------
    sessions : two or more of one subject, the earliest first: what `bci_adapt.read` or `session` returned, recordings,
        or prepared sessions (``.nc``).
    target : what is decoded; velocity when None.
    decoders : your own by name, each an arm with its canary: a class or an instance (see `bci_adapt.decoders.own.Own`),
        or a decoder of this package. Each is copied, trained and run in this process, on the same bins as the others,
        with the first seed. What it raises is raised here.
    bin_s : width of a bin; None: that of the sessions, or `BIN_S` for recordings.
    stream_s, label_delay_s : adaptation stream of each target, at most half of it; how late labels become known.
    cells : networks; tanh and gru when None, tanh alone with `quick`.
    seeds : number of seeds of the networks; 3 when None, 1 with `quick`.
    quick : a first look: one small network, no sweeps of the labels.
    by, missing : what makes two channels the same one, and what happens to others, as in `bci_adapt.match`.
    axes : which axes of a variable are decoded, by name: ``{"emg": ["FCR", "ECU"]}``, or ``{"emg": ["common"]}`` for
        those that all sessions have.
    workers : processes; None for as many as there are processors, 0 for this one.

    Raises `InputError` for sessions, a target or decoders that cannot be compared.
    """
    from bci_adapt.experiment.run import run_experiment
    from bci_adapt.results.table import read_results

    _require_lists(sessions, cells)
    require_numbers(
        {"bin_s": bin_s, "stream_s": stream_s, "label_delay_s": label_delay_s, "seeds": seeds, "workers": workers}
    )
    own = [_present(name, decoder) for name, decoder in (decoders or {}).items()]
    _tell_unaware(own, label_delay_s)
    width_s = width_of(sessions) if bin_s is None else bin_s
    config = compare_config(
        [_file_of(session) for session in sessions], target, bin_s=width_s,
        stream_s=stream_s, label_delay_s=label_delay_s, cells=",".join(cells) if cells else None, seeds=seeds,
        quick=quick, by=by, missing=missing, axes=axes or {}, workers=workers,
    )  # fmt: skip
    done = run_experiment(config, workers=workers, say=say, command="bci_adapt.compare", foreign=own)
    folder, rows = done.folder, read_results(done.folder / "results.nc").rows
    return Comparison(rows, folder / "report.html", folder, done.manifest.notes)


def _require_lists(sessions: Any, cells: Any) -> None:
    if isinstance(sessions, xr.Dataset | str | Path):
        raise InputError(
            f"compare: expected a list of two sessions or more, got one {type(sessions).__name__}: "
            "compare([monday, tuesday]), the earliest first"
        )
    if isinstance(cells, str):
        raise InputError(f"cells: expected a list of names, got {cells!r}: cells=[{cells!r}]")


def _tell_unaware(own: Sequence[Present], label_delay_s: float) -> None:
    """A warning, as from the caller's caller, for each decoder that has labels earlier than the others."""
    from bci_adapt.decoders.own import TO_KNOW

    for each in own:
        if each.delay_s(label_delay_s) != label_delay_s:
            told = f"{each.name}: does not know how late labels are and has each with its bin, the other arms"
            warnings.warn(f"{told} {label_delay_s:g} s later: {TO_KNOW}", UserWarning, stacklevel=3)


def _present(name: str, decoder: Any) -> Present:
    from bci_adapt.decoders.own import require_methods

    if not name.isidentifier():
        raise InputError(f"decoders: expected names such as 'mine', got {name!r}")
    require_methods(decoder, f"decoders: {name}")
    return Present(Path("this process"), name, decoder)


def width_of(sessions: Sequence[xr.Dataset | Path | str]) -> float:
    """The bin width that the sessions have in common, in seconds; `BIN_S` where none has one yet."""
    widths = []
    for each in sessions:
        width_s = float(each.attrs["bin_s"]) if isinstance(each, xr.Dataset) else bins_of(Path(each))[1]
        widths += [] if width_s is None else [width_s]
    if len({bin_ticks(width) for width in widths}) > 1:
        raise InputError(
            f"compare: expected sessions in bins of one width, got {', '.join(map('{:g} s'.format, widths))}"
        )
    return widths[0] if widths else BIN_S


def _file_of(session: xr.Dataset | Path | str) -> Path:
    """The file of a session; one that is in memory alone is written to the cache."""
    from bci_adapt.data.session_files import write_session

    if not isinstance(session, xr.Dataset):
        return Path(session)
    name = str(session.attrs.get("session_id", "session"))
    return _kept(name, ".nc", lambda path: write_session(session, path))


def _kept(name: str, suffix: str, write: Callable[[Path], None]) -> Path:
    """A file in the cache that is called by its content, so that equal contents are one file."""
    folder = cache_root() / "given"
    folder.mkdir(parents=True, exist_ok=True)
    stem = "".join(each if each.isalnum() or each in "._-" else "_" for each in name)[:80]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        written = Path(temporary) / f"{stem}{suffix}"
        write(written)
        target = folder / f"{stem}-{file_digest(written)[:16]}{suffix}"
        os.replace(written, target)
    return target


def compare_config(
    files: list[Path],
    target: str | None,
    *,
    bin_s: float,
    stream_s: float,
    label_delay_s: float,
    cells: str | None,
    seeds: int | None,
    quick: bool,
    by: str | None = None,
    missing: str = "refuse",
    axes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    unobserved: str | None = None,
    workers: int | None = None,
    progress: Any = None,
) -> Config:
    """The config of ``bci-adapt compare``; `InputError` for files or a target that cannot be what they should be."""
    from bci_adapt.archive.sources.files import Files

    if len(files) < 2:
        raise InputError("compare takes two recordings or more: the earliest first, then those it is tried on")
    paths = [str(file.resolve()) for file in files]
    if len(set(paths)) < len(paths):
        raise InputError("compare: one file is given twice; a decoder is tried on another day than it was trained on")
    table = Files(paths).list()
    ids = {str(path): str(name) for name, path in table["path"].items()}
    first, earliest = ids[paths[0]], str(table.index[0])
    if first != earliest:
        start = str(table.loc[earliest, "session_start"])
        raise InputError(f"{files[0]}: {earliest} was recorded before it ({start}); give the earliest recording first")
    names = [each.strip() for each in cells.split(",")] if cells else ["tanh"] if quick else ["tanh", "gru"]
    raw: dict[str, Any] = {"network": {}} | (QUICK if quick else {})
    raw |= {
        "name": "compare",
        "bin_s": bin_s,
        "stream_s": stream_s,
        "min_held_out_s": MIN_HELD_OUT_S,
        "label_delay_s": label_delay_s,
        "seeds": list(range(seeds or (1 if quick else 3))),
        "source": {"kind": "files", "paths": paths},
        "pairs": [{"source": first, "targets": [name for name in map(str, table.index) if name != first]}],
        "network": raw["network"] | {"cells": names},
        "primary": {"arm": "immediate_rmsprop", "cell": names[-1], "against": "rls"},
        "arms": [*ARMS],
    }
    if by is not None or missing != "refuse":
        raw["channels"] = {"missing": missing} | ({} if by is None else {"policy": by})
    if unobserved is not None:
        raw["unobserved"] = unobserved
    config = parse_config(raw, "compare")
    if target is not None:
        config = _decoding(config, target, Path(paths[0]), workers, progress)
    if axes:  # of variables that are known by now
        config = parse_config(config.model_dump(mode="json", exclude_unset=True) | {"axes": dict(axes)}, "compare")
    return config


def _decoding(config: Config, target: str, file: Path, workers: int | None, progress: Any) -> Config:
    """The config for another kinematic than the derived velocity: one that the layout of the file reads, or a series
    of it by the end of its path.
    """
    from bci_adapt.data.guarded_reading import inspect
    from bci_adapt.data.layouts.generic import kind_of
    from bci_adapt.ground.catalog import unknown

    held = _kinematics(config, file, workers, progress)
    if target in held:
        return config.model_copy(update={"variables": (target,)})
    if not is_recording(file):
        raise InputError(f"{file}: {unknown(target, held, 'target')}")
    paths = [series.path for series in inspect(file).series]
    ends = [path for path in paths if f"/{path}".endswith(f"/{target.strip('/')}")]
    if len(ends) != 1:
        if ends:
            raise InputError(f"{file}: --target {target} is the end of several series: {', '.join(ends)}; say more")
        raise InputError(f"{file}: {unknown(target, [*held, *paths], 'target')}")
    kind = kind_of(ends[0])
    if kind in held and [kind_of(path) for path in paths].count(kind) == 1:
        return config.model_copy(update={"variables": (kind,)})
    config = config.model_copy(update={"kinematics": (ends[0],)})
    made = [name for name in _kinematics(config, file, workers, progress) if name != "velocity"]
    return config.model_copy(update={"variables": tuple(made)})


def _kinematics(config: Config, file: Path, workers: int | None, progress: Any) -> list[str]:
    """The kinematics of a recording as the config prepares it; the run finds it prepared."""
    from bci_adapt.data.session_files import open_session
    from bci_adapt.data.sessions import kinematic_names
    from bci_adapt.experiment.common_jobs import prepare_job

    job = prepare_job(config, file, {})
    for failure in execute([job], workers=workers, progress=progress).failed:
        raise InputError(failure.message) if failure.is_input_error else RuntimeError(failure.error)
    with open_session(job.path) as session:
        return kinematic_names(session)
