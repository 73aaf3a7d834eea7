"""The job that `bench sweep` runs thousands of: next to nothing, under the code of a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    out.write_text(str(parameters["number"]), encoding="ascii")
