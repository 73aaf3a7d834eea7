"""Commands about recordings: what is in a file, and sessions made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bci_adapt.cli.common import JsonFile, Quiet, app, out, progress, write_json


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE.nwb", help="An NWB 2 file.")],
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Show what is inside an NWB file, what would be used as spikes and as target, and why.

    Example: [cyan]bci-adapt inspect monday.nwb[/]
    """
    from bci_adapt.prepare import inspect as describe
    from bci_adapt.results import json_safe

    found = describe(file)
    if json_file is not None:
        write_json(json_file, json_safe(found.to_json()))
    if not quiet and json_file != "-":
        out.print(found.table())


@app.command()
def prepare(
    recordings: Annotated[list[Path], typer.Argument(help="NWB files, or folders of them.")],
    bin_s: Annotated[float, typer.Option("--bin-s", help="Width of a bin in seconds.")] = 0.05,
    into: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the sessions; data_cache/sessions when not given.")
    ] = None,
    layout: Annotated[str | None, typer.Option(help="Read with this layout instead of the best match.")] = None,
    quiet: Quiet = False,
) -> None:
    """Bin NWB files into labelled sessions (netCDF), with faulty stretches masked by rule.

    Example: [cyan]bci-adapt prepare recordings/ --bin-s 0.05[/]
    """
    from bci_adapt.prepare import prepare_file
    from bci_adapt.session import read_session
    from bci_adapt.sources.folder import Folder
    from bci_adapt.storage import cache_root

    files: list[Path] = []
    for path in recordings:
        files += [Path(each) for each in Folder(path).list()["path"]] if path.is_dir() else [path]
    folder = into or cache_root() / "sessions"
    with progress(quiet) as bar:
        task = bar.add_task("preparing", total=len(files)) if bar is not None else None
        for file in files:
            written = prepare_file(file, folder, bin_s, layout)
            if bar is not None and task is not None:
                bar.update(task, advance=1, description=file.name)
            if not quiet:
                session = read_session(written)
                labels = [name for name in ("position", "velocity", "recorded_velocity") if name in session]
                minutes = session.sizes["time"] * bin_s / 60.0
                out.print(
                    f"{written}  {session.sizes['channel']} channels, {minutes:.1f} min, {', '.join(labels)}",
                    highlight=False,
                    soft_wrap=True,
                )
                for warning in json.loads(session.attrs["warnings"]):
                    out.print(f"  warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
