"""The pictures of a page: drawn once, shown in it, offered as SVG and their numbers as CSV, inside it and beside it."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from bci_adapt.ground.storage import write_text
from bci_adapt.results.figures import run as figures
from bci_adapt.results.report.blocks import Download, Picture

FOLDER = "figures"
DOWNLOADS_BYTES = 4_000_000  # held in the page itself; what comes after lies beside it only


class Album:
    """Collects figures for one page and then writes them into the folder ``figures`` beside it."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.room = DOWNLOADS_BYTES

    def picture(self, name: str, drawn: figures.Drawn | None, alt: str, caption: str) -> Picture | None:
        """`drawn` as a picture called `name` (made fit for a file name); None where nothing was drawn."""
        if drawn is None:
            return None
        stem = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "figure"
        stem = stem if f"{stem}.svg" not in self.files else f"{stem}-{len(self.files)}"
        svg = figures.svg(drawn.figure, stem, alt)
        files = {f"{stem}.svg": svg, f"{stem}.csv": drawn.data.to_csv(index=False, float_format="%.6g")}
        self.files |= files
        downloads = [
            Download(f"{name.rsplit('.', 1)[1].upper()}", self._address(name, text), name)
            for name, text in files.items()
        ]
        return Picture(stem, svg, caption, downloads)

    def write(self, folder: Path) -> None:
        """Write every figure and its numbers into `folder`/figures."""
        for name, text in self.files.items():
            write_text(folder / FOLDER / name, text)

    def _address(self, name: str, text: str) -> str:
        kind = "image/svg+xml" if name.endswith(".svg") else "text/csv"
        held = f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"
        if len(held) > self.room:
            return f"{FOLDER}/{name}"
        self.room -= len(held)
        return held
