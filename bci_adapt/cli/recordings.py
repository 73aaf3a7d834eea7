"""Commands about recordings: what is in a file, and sessions made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bci_adapt.cli.common import (
    JsonFile,
    Quiet,
    Unobserved,
    Verify,
    app,
    err,
    one_by_one,
    out,
    print_line,
    progress,
    write_json,
)
from bci_adapt.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

    from bci_adapt.data.nwb_describing import Description
    from bci_adapt.data.remote import Remote

Stream = Annotated[
    bool,
    typer.Option(
        "--stream", help="Read over the network, by ranges: an address, or DANDISET/VERSION/PATH. Nothing is verified."
    ),
]


@app.command()
def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="NWB 2, MATLAB, .npz or prepared (.nc) files.")],
    stream: Stream = False,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Show what is inside a recording, what would be used as spikes and as target, and why.

    Of several files, also how many electrodes (array and label, never the place in a table) they share, and whether the
    counts say that a column is the same channel in all of them.

    Example: [cyan]bci-adapt inspect monday.nwb tuesday.nwb[/]

    Example: [cyan]bci-adapt inspect --stream 000688/0.250122.1735/sub-C/sub-C_ses-CO-20131003_behavior+ecephys.nwb[/]
    """
    from bci_adapt.archive.reading import located
    from bci_adapt.data.guarded_reading import inspect as describe
    from bci_adapt.ground.storage import json_safe

    found = [describe(located(file, stream)[0]) for file in files]
    shared = _overlap(found)
    columns = _whose_columns(files) if len(files) > 1 and not stream else None
    if json_file is not None:
        each = [description.to_json() for description in found]
        write_json(
            json_file, json_safe(each[0] if len(each) == 1 else {"files": each, "overlap": shared, "columns": columns})
        )
    if not quiet and json_file != "-":
        for description in found:
            out.print(description.table())
        if len(found) > 1:
            _print_overlap(shared)
        for each in columns["sessions"] if columns else ():
            print_line(each["sentence"], "" if each["verdict"] == "same" else "yellow")


def _whose_columns(files: list[str]) -> dict[str, Any] | None:
    """What the counts of files say of their columns; None where they cannot be read or brought together."""
    from bci_adapt.data.same_columns.files import of_files

    try:
        return of_files([Path(file) for file in files]).to_json()
    except InputError:
        return None


def _overlap(found: list[Description]) -> list[dict[str, Any]]:
    """For every pair of files the electrodes that carry spikes: in both, only in the first, only in the second.

    None in all three where a file does not name its channels, or they are sorted units.
    """
    pairs = []
    for number, first in enumerate(found):
        for second in found[number + 1 :]:
            a, b = set(first.channels), set(second.channels)
            names = {"first": first.session_id, "second": second.session_id}
            known = bool(a and b)  # what has no names is unknown, not different
            found_in = {"common": len(a & b), "only_first": sorted(a - b), "only_second": sorted(b - a)}
            pairs.append(names | (found_in if known else dict.fromkeys(found_in)))
    return pairs


def _print_overlap(pairs: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Electrodes that carry spikes", title_justify="left", box=None, pad_edge=False)
    for heading in ("session", "and session", "in both", "only in the first", "only in the second"):
        table.add_column(heading)
    for pair in pairs:
        cells = [pair["first"], pair["second"], str(pair["common"])]
        if pair["common"] is None:
            table.add_row(
                *(Text(cell) for cell in [*cells[:2], "unknown", "channels have no names that hold elsewhere", ""])
            )
            continue
        for names in (pair["only_first"], pair["only_second"]):
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            cells.append(f"{len(names)}: {', '.join(names[:6])}{more}" if names else "0")
        table.add_row(*(Text(cell) for cell in cells))
    out.print(table)


@app.command()
def prepare(
    recordings: Annotated[list[str], typer.Argument(help="NWB, MATLAB or .npz files, or folders of recordings.")],
    bin_s: Annotated[
        float | None, typer.Option("--bin-s", help="Width of a bin in seconds; 0.05, or that of arrays that state one.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the sessions; data_cache/sessions when not given.")
    ] = None,
    layout: Annotated[str | None, typer.Option(help="Read with this layout instead of the best match.")] = None,
    spikes: Annotated[
        str | None, typer.Option(metavar="PATH", help="Spikes of your own files: units, or a series of counts inside.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Kinematic series inside your own files (repeat).")
    ] = None,
    per: Annotated[
        str | None,
        typer.Option(metavar="electrode|unit", help="What a channel is; the layout's choice when not given."),
    ] = None,
    unobserved: Unobserved = None,
    stream: Stream = False,
    verify: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Bin NWB files into labelled sessions (netCDF), with faulty stretches masked by rule.

    A file that cannot be used is named and the others are prepared; the exit code is then 1 (2 for a single file).

    Files of a known dataset need nothing more; of your own, [cyan]bci-adapt inspect[/] lists the paths to choose from.

    Example: [cyan]bci-adapt prepare recordings/ --bin-s 0.05[/]

    Example: [cyan]bci-adapt prepare mine/ --spikes units --target processing/behavior/hand --bin-s 0.02[/]
    """
    from bci_adapt.archive.reading import located
    from bci_adapt.archive.sources.folder import Folder
    from bci_adapt.ground.storage import cache_root

    files: list[tuple[Path | Remote, dict[str, str]]] = []
    for place in recordings:
        folded = not stream and Path(place).is_dir()
        files += [(path, {}) for path in Folder(place).paths()] if folded else [located(place, stream)]
    folder = into or cache_root() / "sessions"
    options = {"layout": layout, "per": per, "spikes": spikes, "targets": target or (), "unobserved": unobserved}
    if stream and verify:
        raise InputError("--stream, --verify: what is read over the network is not verified; fetch it first")
    if failed := _prepare_each(files, folder, bin_s, options, quiet, verify):
        err.print(f"{failed} of {len(files)} recordings could not be prepared", style="red", highlight=False)
        raise typer.Exit(1)


def _prepare_each(
    files: Sequence[tuple[Path | Remote, dict[str, str]]],
    folder: Path,
    bin_s: float | None,
    options: Any,
    quiet: bool,
    verify: bool,
) -> int:
    """Prepare files into a folder, one after another; returns how many cannot be. A single one raises its error."""
    from bci_adapt.archive.cache import require_whole
    from bci_adapt.data.any_file import is_prepared
    from bci_adapt.data.guarded_reading import opened
    from bci_adapt.data.session_files import write_session
    from bci_adapt.data.sessions import session_file_name

    seen: dict[Path, Path | Remote] = {}
    failed = 0
    with progress(quiet) as bar:
        for file, about in one_by_one(bar, "preparing", files, lambda each: each[0].name):
            try:
                if is_prepared(file):
                    raise InputError(_already(file, bin_s))
                if verify and isinstance(file, Path):
                    require_whole(file)
                session = opened(file, bin_s, **options, provenance=about)
                written = folder / session_file_name(session)
                if written in seen:
                    raise InputError(f"{file} and {seen[written]} are one session, {written.stem}: prepare one of them")
                seen[written] = file
                write_session(session, written)
            except InputError as error:
                if len(files) == 1:
                    raise
                failed += 1
                print_line(f"error: {error}", "red", err)
                continue
            if not quiet:
                _say_prepared(session, written)
    return failed


def _already(file: Path | Remote, bin_s: float | None) -> str:
    """Why a prepared session is not prepared again, and what to do."""
    from bci_adapt.data.guarded_reading import bins_of

    own_s = bins_of(file)[1] if isinstance(file, Path) else None
    text = f"{file}: is a prepared session" + (f", in bins of {own_s:g} s" if own_s is not None else "")
    other = own_s is not None and bin_s is not None and abs(own_s - bin_s) > 1e-9
    how = f"for bins of {bin_s:g} s prepare" if other else "use it as it is, or prepare"
    return f"{text}: {how} the recording that it was made of"


def _say_prepared(session: xr.Dataset, written: Path) -> None:
    from bci_adapt.data.sessions import kinematic_names

    minutes = session.sizes["time"] * float(session.attrs["bin_s"]) / 60.0
    labels = ", ".join(kinematic_names(session)) or "no labels"
    print_line(f"{written}  {session.sizes['channel']} channels, {minutes:.1f} min, {labels}")
    for warning in json.loads(session.attrs["warnings"]):
        print_line(f"  warning: {warning}", "yellow")
