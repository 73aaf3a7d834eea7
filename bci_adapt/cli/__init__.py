"""The command line. A file here holds commands; heavy libraries are imported by the commands that need them, so that
``--help`` is quick.
"""

from __future__ import annotations

import sys

# in the order of --help
from bci_adapt.cli import (  # noqa: F401
    adapting,
    benchmarks,
    comparing,
    drifting,
    experiments,
    fetching,
    living,
    quality,
    recordings,
    reproducing,
    variants,
)
from bci_adapt.cli.common import app, err
from bci_adapt.errors import InputError, WorkersLost
from bci_adapt.ground.said import MOST, printable_warnings, refused
from bci_adapt.ground.text import printable


def _optional_json_value(arguments: list[str]) -> list[str]:
    """Let ``--json`` stand alone for standard output; only ``-`` or a name that ends in ``.json`` is its value."""
    given = []
    for position, argument in enumerate(arguments):
        given.append(argument)
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        if argument == "--json" and following != "-" and not following.endswith(".json"):
            given.append("-")
    return given


def main() -> None:
    """Entry point: 0 done, 1 something broke, 2 the input cannot be used (one line says why), 130 interrupted."""
    try:
        with printable_warnings():
            app(args=_optional_json_value(sys.argv[1:]))
    except InputError as error:
        err.print(printable(f"error: {error}", MOST), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except WorkersLost as error:
        err.print(printable(f"error: {error}", MOST), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except (OSError, RuntimeError, MemoryError, ImportError) as error:
        if isinstance(error, BrokenPipeError) or (said := refused(error)) is None:
            raise
        err.print(f"error: {said}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted; what was finished is kept", style="yellow")
        sys.exit(130)
