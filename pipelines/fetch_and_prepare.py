"""From a dandiset and globs to sessions on disk, checked and with the same channels: copy this and change it.

    python pipelines/fetch_and_prepare.py 000688 "sub-M/*-20140303_*" "sub-M/*-20140929_*" --bin-s 0.05

Files are fetched once, pinned and verified; the second time no network is needed. Sessions of an animal that differ in
their channels keep the common ones. `bci_adapt.read` reads the files that are printed.
"""

import argparse
import json
import sys
from pathlib import Path

from bci_adapt.archive.addresses import parse_dandiset
from bci_adapt.archive.sources.dandi import Dandi
from bci_adapt.data.channels import match
from bci_adapt.data.prepare import prepare, session_warnings
from bci_adapt.data.qc import flagged_channels, qc
from bci_adapt.data.session_files import write_session
from bci_adapt.data.sessions import session_file_name
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import cache_root


def main(dandiset: str, globs: list[str], bin_s: float = 0.05, out: Path | None = None) -> list[Path]:
    source = Dandi(*parse_dandiset(dandiset), globs)
    table = source.list()  # fetches what is missing, and pins the version on first use
    for note in source.select().notes:
        print(f"note: {note}")

    written = []
    for subject, days in table.groupby("subject", sort=False):  # equal names of electrodes mean nothing across animals
        sessions = []
        for name in days.index:
            session = prepare(source.fetch(name), bin_s, provenance=source.provenance(name))
            report = qc(session)
            flags = f"flagged: {', '.join(report.flagged) or 'nothing'} ({len(flagged_channels(report))} channels)"
            decoding = {check.name: check.found for check in report.checks}["neurons tell labels"]
            about = f"{session.sizes['channel']} channels, {report.session['duration_s'] / 60:.1f} min"
            print(f"{name}: {about}; decoding: {decoding}; {flags}")
            for warning in session_warnings(session):
                print(f"  warning: {warning}")
            sessions.append(session)
        for session in match(sessions, missing="drop"):
            left_out = json.loads(session.attrs["channels_left_out"])
            written.append((out or cache_root() / "sessions") / session_file_name(session))
            write_session(session, written[-1])
            print(f"{written[-1]}: {session.sizes['channel']} channels common to {subject}, {len(left_out)} left out")
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dandiset")
    parser.add_argument("globs", nargs="+", metavar="glob")
    parser.add_argument("--bin-s", type=float, default=0.05)
    try:
        main(**vars(parser.parse_args()))
    except InputError as error:
        sys.exit(f"error: {error}")
