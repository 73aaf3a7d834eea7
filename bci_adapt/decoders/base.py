"""The face of every decoder, and the doors that all of them share.

X is spike counts ``(n_bins, n_channels)`` and y kinematics ``(n_bins, n_outputs)``, as arrays or DataArrays; a list of
them is several sessions. NaN in X marks a bin whose neurons were not observed, NaN in y a missing label. ``reset``
(n_bins,) is True at the first bin of a segment: nothing – lags, hidden state, waiting labels – crosses it.
"""

from __future__ import annotations

import json
import math
import zipfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin

from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import pick, variants
from bci_adapt.ground.storage import atomic_path


class Bins(NamedTuple):
    """One session at the door: counts with unobserved bins set to 0, labels with missing ones set to 0, and flags."""

    X: np.ndarray
    Y: np.ndarray
    weight: np.ndarray
    observed: np.ndarray
    reset: np.ndarray


class NotFitted(InputError):
    """The decoder was asked to work before it was fitted."""


class Decoder(RegressorMixin, BaseEstimator):
    """Base of all decoders: scikit-learn's parameters, plus adaptation.

    ``fit`` trains on earlier sessions. ``predict`` is pure: it leaves the decoder as it was. ``adapt`` starts a new
    session and predicts each of its bins before that bin's label is used; ``partial_fit`` goes on with the session.
    `OnlineDecoder` has ``step`` besides, one bin of it.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    # What `save` stores beside the parameters: fitted arrays (underscored as in scikit-learn).
    stored: ClassVar[tuple[str, ...]] = ()
    # What its inputs and outputs are, where that is known, as JSON can hold it; `save` stores it and no decoder reads
    # it: `channels` (names), `outputs` (list of {variable, axes, units}), and what else whoever trained it wrote.
    about_: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def fit(self, X, y, reset=None) -> Decoder:
        """Train on one session (arrays) or several (lists of arrays)."""

    def extend(self, X, y, reset=None) -> Decoder:
        """Go on training when a day is added: X and y are lists of all sessions so far, the new one last. A decoder
        whose training has a closed form is simply fitted again.
        """
        self.require_fitted()
        return self.fit(X, y, reset)

    @abstractmethod
    def predict(self, X, reset=None, continuing: bool = False) -> np.ndarray:
        """Predict (n_bins, n_outputs) with the weights as they are, changing nothing.

        With `continuing` the hidden state and the running statistics go on from the last bin that was adapted to;
        otherwise they start as for a new session.
        """

    @abstractmethod
    def partial_fit(self, X, y=None, reset=None, arrives=None) -> Decoder:
        """Go on with the session: predict and learn bin by bin. Predictions are kept in ``online_predictions_``.

        `arrives` (n_bins,) is the bin, counted from the first of this call and perhaps beyond its last, at whose end
        the label of each row becomes known; ``label_delay_s`` after its own bin when None.
        """

    @abstractmethod
    def begin(self) -> None:
        """Start a new session: hidden state, lags and waiting labels are cleared, weights and statistics stay."""

    def adapt(self, X, y, reset=None, arrives=None) -> np.ndarray:
        """Adapt through a new session; returns (n_bins, n_outputs), each bin predicted before its label was used."""
        self.require_fitted()
        self.begin()
        return self.partial_fit(X, y, reset, arrives).online_predictions_  # type: ignore[attr-defined]

    def with_fitted_statistics(self) -> Self:
        """The same decoder, weights as they are now, with the running statistics that its training left: what it would
        be if it went back to the last training session. It shares its arrays with this one: for `predict` only.
        """
        return self

    def require_fitted(self) -> None:
        if not hasattr(self, "n_features_in_"):
            raise NotFitted(f"{type(self).__name__}: fit it (or load a fitted one) before this call")

    def door(self, X, y=None, reset=None) -> Bins:
        """Check one session and convert it to plain arrays."""
        counts = np.array(getattr(X, "values", X), dtype=float)
        if counts.ndim != 2:
            raise InputError(f"X: expected counts (n_bins, n_channels), got an array of shape {counts.shape}")
        if hasattr(self, "n_features_in_") and counts.shape[1] != self.n_features_in_:
            raise InputError(f"X: this decoder was fitted on {self.n_features_in_} channels, got {counts.shape[1]}")
        observed = np.asarray(np.isfinite(counts).all(axis=1))
        counts[~observed] = 0.0
        if (counts < 0).any():
            raise InputError(
                "X: expected spike counts or power ≥ 0, got negative values; hand over raw values, not z-scores"
            )
        n_outputs = getattr(self, "n_outputs_", 1)
        labels = (
            np.full((len(counts), n_outputs), np.nan) if y is None else np.array(getattr(y, "values", y), dtype=float)
        )
        labels = labels[:, None] if labels.ndim == 1 else labels
        if len(labels) != len(counts) or labels.ndim != 2:
            raise InputError(f"y: expected ({len(counts)}, n_outputs) to go with X, got {labels.shape}")
        if hasattr(self, "n_outputs_") and labels.shape[1] != self.n_outputs_:
            raise InputError(f"y: this decoder was fitted on {self.n_outputs_} outputs, got {labels.shape[1]}")
        flags = np.zeros(len(counts), bool) if reset is None else np.array(getattr(reset, "values", reset), dtype=bool)
        if flags.shape != (len(counts),):
            raise InputError(f"reset: expected ({len(counts)},) true/false, got {flags.shape}")
        weight = np.isfinite(labels).astype(float)
        return Bins(counts, np.where(weight > 0, labels, 0.0), weight, observed, flags)

    def training_doors(self, X, y, reset=None, anew: bool = True) -> list[Bins]:
        """Check what `fit` was given; remembers the number of channels and outputs, or, unless `anew`, asks for those
        that it was fitted on.
        """
        several = isinstance(X, Sequence) and not isinstance(X, np.ndarray)
        sessions = list(X) if several else [X]
        labels = list(y) if several else [y]
        resets = [None] * len(sessions) if reset is None else list(reset) if several else [reset]
        if not sessions or len(sessions) != len(labels) or len(sessions) != len(resets):
            raise InputError(f"fit: expected as many label arrays as sessions, got {len(labels)} for {len(sessions)}")
        for attribute in ("n_features_in_", "n_outputs_") if anew else ():
            vars(self).pop(attribute, None)
        doors = []
        for session, label, begins in zip(sessions, labels, resets, strict=True):
            bins = self.door(session, label, begins)
            if not (bins.weight > 0).any():
                raise InputError("y: expected finite labels to train on, got none")
            doors.append(bins)
            self.n_features_in_, self.n_outputs_ = bins.X.shape[1], bins.Y.shape[1]
        self.about_ = _said_by(sessions[-1], labels[-1])
        return doors

    def save(self, path: str | Path) -> None:
        """Write the fitted decoder to one npz file: parameters as JSON, everything else as arrays; no pickle."""
        self.require_fitted()
        header = {
            "decoder": self.name,
            "parameters": self.get_params(deep=False),
            "n_features_in_": self.n_features_in_,
            "n_outputs_": self.n_outputs_,
            "about": dict(self.about_),
        }
        arrays = self._fitted_arrays()
        with atomic_path(Path(path)) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(path: str | Path) -> Decoder:
        """Read what `save` wrote, as the decoder it was; `InputError` where the file is something else."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                header = json.loads(str(stored["header"]))
                arrays = {key: stored[key] for key in stored.files if key != "header"}
            # JSON knows no tuples; no decoder has a list among its parameters.
            parameters = {
                name: tuple(value) if isinstance(value, list) else value for name, value in header["parameters"].items()
            }
            decoder = decoder_class(header["decoder"])(**parameters)
            decoder.n_features_in_, decoder.n_outputs_ = header["n_features_in_"], header["n_outputs_"]
            decoder.about_ = dict(header.get("about", {}))
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: expected a decoder saved by bci_adapt (npz): {error}") from error
        missing = set(decoder.stored) - set(arrays)
        if missing:
            raise InputError(
                f"{path}: arrays missing from a stored {header['decoder']} decoder: {', '.join(sorted(missing))}"
            )
        decoder._restore(arrays)
        return decoder

    def _fitted_arrays(self) -> dict[str, np.ndarray]:
        return {key: np.asarray(getattr(self, key)) for key in self.stored}

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        for key in self.stored:
            setattr(self, key, arrays[key])


def _said_by(X: Any, y: Any) -> dict[str, Any]:
    """What labelled arrays say of themselves: the names of the channels, and the variable, axes and unit of y."""
    about: dict[str, Any] = {}
    for key, array, dim in (("channels", X, "channel"), ("axes", y, None)):
        dims = [str(name) for name in getattr(array, "dims", ())]
        last = dim or (dims[-1] if len(dims) == 2 else "")
        if last in dims and last in array.coords:
            about[key] = [str(name) for name in array[last].values]
    if axes := about.pop("axes", []):
        variable, units = str(y.name or ""), str(y.attrs.get("units", ""))
        about["outputs"] = [{"variable": variable, "axes": axes, "units": units}]
    return about


def delay_bins(delay_s: float, bin_s: float) -> int:
    """A label delay in whole bins, rounded up (a float's last digit aside).

    >>> delay_bins(0.5, 0.05), delay_bins(0.51, 0.05)
    (10, 11)
    """
    return math.ceil(round(delay_s / bin_s, 6))


def forgetting(memory_s: float, bin_s: float) -> float:
    """Factor per bin on old evidence whose weight falls by e in `memory_s`: 1 − 1/bins; `InputError` below a bin."""
    if not memory_s > bin_s:
        raise InputError(f"memory_s must be longer than a bin ({bin_s} s), got {memory_s}")
    return 1.0 - bin_s / memory_s


def arrival_bins(arrives, n_bins: int, delay: int) -> np.ndarray:
    """When the label of each bin becomes known (n_bins,): `arrives`, checked, or `delay` bins after its own bin."""
    own = np.arange(n_bins)
    if arrives is None:
        return own + delay
    known = np.asarray(getattr(arrives, "values", arrives))
    if known.shape != (n_bins,) or not np.issubdtype(known.dtype, np.integer):
        raise InputError(f"arrives: expected ({n_bins},) whole bin numbers, got {known.dtype} {known.shape}")
    if (np.diff(known) < 0).any() or (known < own).any():
        raise InputError("arrives: expected bin numbers that never fall, none before its own bin")
    return known.astype(np.int64)


def label_blocks(
    arrives: np.ndarray, n_waiting: int, reset: np.ndarray, block: int
) -> tuple[list[tuple[slice, list[slice]]], int]:
    """When a decoder that learns in blocks may learn what.

    Parameters
    ----------
    arrives : (n_waiting + n_bins,) when the label of each queued row becomes known, counted from the first bin of this
        call: first the rows that wait since earlier calls, then those of this call.
    reset : (n_bins,) True at the first bin of a segment: rows that still wait are lost, as in the network's loop.
    block : rows that are learned together, once the last of them is known.

    Returns
    -------
    (bins, rows) in order – predict these bins, then learn these blocks of queued rows – and how many rows are done.
    """
    n_bins, steps, taken, at = len(reset), [], 0, 0
    # A row is learned after those before it, however early its own label came.
    known = np.maximum.accumulate(arrives)
    boundaries = [*np.flatnonzero(reset).tolist(), n_bins]
    for end in boundaries:
        while at < end:
            last = taken + block - 1
            due = int(known[last]) + 1 if last < len(known) else n_bins
            begin, at = at, min(max(at + 1, due), end)
            rows = []
            while (last := taken + block - 1) < n_waiting + at and known[last] < at:
                rows.append(slice(taken, last + 1))
                taken = last + 1
            steps.append((slice(begin, at), rows))
        if end < n_bins:
            taken = n_waiting + end
    return steps, taken


def decoders() -> dict[str, type[Decoder]]:
    """Every decoder, by name."""
    return variants("bci_adapt.decoders", Decoder)


def decoder_class(name: str) -> Any:
    """The decoder called `name`; `InputError` when there is none."""
    return pick("bci_adapt.decoders", Decoder, name)
