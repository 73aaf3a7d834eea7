"""Decode movement from primate spike recordings as electrodes drift.

>>> import bci_adapt as ba
>>> monday = ba.session([[0.11, 0.52], [0.33]], [[0.0], [1.0], [1.5]], [0.0, 0.25, 0.6], bin_s=0.3)
>>> monday["counts"].values.tolist()
[[1, 0], [1, 1]]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bci_adapt.ground.version import __version__ as __version__

_PUBLIC = {
    "InputError": "bci_adapt.errors",
    "read": "bci_adapt.archive.reading",
    "session": "bci_adapt.data.from_arrays",
    "write_session": "bci_adapt.data.session_files",
    "open_session": "bci_adapt.data.session_files",
    "split": "bci_adapt.data.sessions",
    "concat": "bci_adapt.data.joining",
    "match": "bci_adapt.data.matching",
    "compare": "bci_adapt.experiment.comparing",
    "evaluate": "bci_adapt.protocol.evaluation",
    "live": "bci_adapt.live",
    "recommended": "bci_adapt.decoders.recommendation",
    "load": "bci_adapt.decoders.base",
    "Decoder": "bci_adapt.decoders.base",
    "OnlineDecoder": "bci_adapt.decoders.online_rnn",
    "FineTunedDecoder": "bci_adapt.decoders.fine_tuned",
    "ReplayingDecoder": "bci_adapt.decoders.replaying",
    "StackedDecoder": "bci_adapt.decoders.stacked",
    "ReadInDecoder": "bci_adapt.decoders.read_in",
    "WienerDecoder": "bci_adapt.decoders.wiener",
    "RLSDecoder": "bci_adapt.decoders.rls",
    "KalmanDecoder": "bci_adapt.decoders.kalman",
    "AlignedDecoder": "bci_adapt.decoders.aligned",
    "PersistenceDecoder": "bci_adapt.decoders.persistence",
    "r2": "bci_adapt.metrics",
    "r2_axes": "bci_adapt.metrics",
    "r2_uniform": "bci_adapt.metrics",
    "pearson": "bci_adapt.metrics",
    "pearson_axes": "bci_adapt.metrics",
    "rmse": "bci_adapt.metrics",
    "score": "bci_adapt.metrics",
    "windowed_r2": "bci_adapt.metrics",
}

if TYPE_CHECKING:  # the same names for a type checker, which then knows what is not among them
    from bci_adapt.archive.reading import read as read
    from bci_adapt.data.from_arrays import session as session
    from bci_adapt.data.joining import concat as concat
    from bci_adapt.data.matching import match as match
    from bci_adapt.data.session_files import open_session as open_session
    from bci_adapt.data.session_files import write_session as write_session
    from bci_adapt.data.sessions import split as split
    from bci_adapt.decoders.aligned import AlignedDecoder as AlignedDecoder
    from bci_adapt.decoders.base import Decoder as Decoder
    from bci_adapt.decoders.base import load as load
    from bci_adapt.decoders.fine_tuned import FineTunedDecoder as FineTunedDecoder
    from bci_adapt.decoders.kalman import KalmanDecoder as KalmanDecoder
    from bci_adapt.decoders.online_rnn import OnlineDecoder as OnlineDecoder
    from bci_adapt.decoders.persistence import PersistenceDecoder as PersistenceDecoder
    from bci_adapt.decoders.read_in import ReadInDecoder as ReadInDecoder
    from bci_adapt.decoders.recommendation import recommended as recommended
    from bci_adapt.decoders.replaying import ReplayingDecoder as ReplayingDecoder
    from bci_adapt.decoders.rls import RLSDecoder as RLSDecoder
    from bci_adapt.decoders.stacked import StackedDecoder as StackedDecoder
    from bci_adapt.decoders.wiener import WienerDecoder as WienerDecoder
    from bci_adapt.errors import InputError as InputError
    from bci_adapt.experiment.comparing import compare as compare
    from bci_adapt.live.opening import live as live
    from bci_adapt.metrics import pearson as pearson
    from bci_adapt.metrics import pearson_axes as pearson_axes
    from bci_adapt.metrics import r2 as r2
    from bci_adapt.metrics import r2_axes as r2_axes
    from bci_adapt.metrics import r2_uniform as r2_uniform
    from bci_adapt.metrics import rmse as rmse
    from bci_adapt.metrics import score as score
    from bci_adapt.metrics import windowed_r2 as windowed_r2
    from bci_adapt.protocol.evaluation import evaluate as evaluate
else:

    def __getattr__(name):
        """Names of `_PUBLIC` are imported when first used, so that ``import bci_adapt`` stays quick."""
        if name not in _PUBLIC:
            raise AttributeError(f"module 'bci_adapt' has no attribute {name!r}")
        from importlib import import_module

        found = import_module(_PUBLIC[name])
        return found if _PUBLIC[name] == f"{__name__}.{name}" else getattr(found, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
