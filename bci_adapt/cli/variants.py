"""The command that lists the variants of a folder, and the datasets that are known."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bci_adapt.cli.common import JsonFile, app, out, write_json
from bci_adapt.errors import InputError

_LISTS = ("cells", "rules", "optimizers", "decoders", "layouts", "tasks", "datasets")


@app.command("list")
def list_variants(
    what: Annotated[str, typer.Argument(metavar="|".join(_LISTS), help="Which folder of variants to list.")],
    json_file: JsonFile = None,
) -> None:
    """List the variants of a folder: cells, credit rules, optimisers, decoders, layouts or tasks; or known datasets.

    A layout is verified once it has read a real file. Of a dataset --json tells more, such as what surprises a reader.

    Example: [cyan]bci-adapt list datasets[/]
    """
    from bci_adapt.ground.catalog import unknown

    if what not in _LISTS:
        raise InputError(unknown(what, _LISTS, "list"))
    if what == "datasets":
        rows = _datasets()
    else:
        rows = [{"name": name, "description": text} for name, text in _variants(what).items()]
    if json_file is not None:
        write_json(json_file, rows)
    if json_file != "-":
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False)
        for row in rows:
            table.add_row(Text(row["name"], style="bold"), Text(row["description"]))
        out.print(table)


def _variants(what: str) -> dict[str, str]:
    """Name → one line about it."""
    if what == "cells":
        from bci_adapt.learning.cells.base import cells

        return {name: cell.description for name, cell in cells().items()}
    if what == "rules":
        from bci_adapt.learning.credit.base import rules

        return {name: rule.description for name, rule in rules().items()}
    if what == "optimizers":
        from bci_adapt.learning.optimizers import optimizers

        return {name: optimizer.description for name, optimizer in optimizers().items()}
    if what == "decoders":
        from bci_adapt.decoders.base import decoders

        return {name: decoder.description for name, decoder in decoders().items()}
    if what == "layouts":
        found = _layouts().items()
        return {
            name: f"{(layout.__doc__ or '').strip().splitlines()[0]} ({layout.standing()})" for name, layout in found
        }
    from bci_adapt.paper.tasks.base import tasks

    return {name: task.description for name, task in tasks().items()}


def _datasets() -> list[dict[str, Any]]:
    """What is known about each dataset, with its name and one line as a description in front."""
    from bci_adapt.archive.datasets import datasets

    layouts, rows = _layouts(), []
    for name, dataset in datasets().items():
        verified_on = layouts[dataset.layout].verified_on
        state = f"refused: {dataset.refused}" if dataset.refused else "verified" if verified_on else "not verified"
        line = {"name": name, "description": f"{dataset.title} (layout {dataset.layout}, {state})"}
        rows.append(line | dataset.model_dump(mode="json") | {"verified_on": verified_on})
    return rows


def _layouts() -> dict[str, Any]:
    from bci_adapt.data.layouts.base import Layout
    from bci_adapt.ground.catalog import variants

    return variants("bci_adapt.data.layouts", Layout)
