"""The face of every decoder.

A decoder is given a **session** (`xarray.Dataset`), or a list of sessions to train on, and the name of what it decodes:

    decoder.fit(monday, "velocity")        # or ([monday, tuesday], ["velocity", "position"])
    decoder.adapt(stream)                  # knows its target since fit; without it, only what needs no label adapts
    decoder.predict(later), decoder.score(later)

What comes out of a session is labelled as the session is: a DataArray (time, axis) of one variable, a Dataset of
several, with its time, axes and units. `bci_adapt.decoders.inputs` says what else is taken: DataArrays that keep their
masks, and plain arrays X (n_bins, n_channels) and y (n_bins, n_outputs), of which nothing is checked but their shape –
NaN in X marks a bin whose neurons were not observed, NaN in y a missing label, and ``reset`` (n_bins,) is True at the
first bin of a segment: nothing – lags, hidden state, waiting labels – crosses it. Plain arrays come out of those.
"""

from __future__ import annotations

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import NotFittedError

from bci_adapt.data.binning import bin_ticks
from bci_adapt.data.labelled import Arrays
from bci_adapt.data.sessions import session_id_of
from bci_adapt.decoders import features, inputs, stored
from bci_adapt.decoders.held import Held, unpacking
from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.settings import from_plain, require_numbers
from bci_adapt.decoders.stored import Form
from bci_adapt.decoders.timing import arrival_bins
from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import pick, variants
from bci_adapt.ground.one_by_one import OneByOne
from bci_adapt.ground.text import clean
from bci_adapt.metrics import r2

USUAL_BIN_S = 0.05  # of plain arrays, where nobody says how wide their bins are


class NotFitted(InputError, NotFittedError):
    """The decoder was asked to work before it was fitted."""


class Decoder(RegressorMixin, BaseEstimator):
    """Base of all decoders: scikit-learn's parameters, plus adaptation.

    ``fit`` trains on earlier sessions. ``predict`` is pure: it leaves the decoder as it was. ``adapt`` starts a new
    session and predicts each of its bins before that bin's label is used; ``partial_fit`` goes on with the session.
    All of them take sessions, DataArrays that kept their masks, or plain arrays (n_bins, n_channels) and (n_bins,
    n_outputs), of which nothing is checked but their shape. `OnlineDecoder` has ``step`` besides, one bin of a session,
    which takes plain numbers alone.

    A class of the folder has the parameters ``bin_s`` and ``missing``, and fills in `_fit`, `_predict`, `_partial_fit`
    and `begin`, which work on checked `Bins`.

    Attributes
    ----------
    flat_ : whether it was fitted on a plain y (n_bins,), and predicts that shape.
    bin_s_ : the bin width in seconds, of the sessions it was fitted on (or of the constructor, which must agree).
    metadata_ : what its inputs and outputs are, where that is known, as JSON can hold it: `channels` (names), `outputs`
        (list of {variable, axes, units}), `sessions` it was fitted on, `adapted_to`, `power_scale` (of each channel,
        where they are a band's power), and what else whoever trained it wrote. Empty after plain arrays.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    # What `save` stores beside the parameters: fitted arrays (underscored as in scikit-learn).
    stored: ClassVar[Mapping[str, Form]] = MappingProxyType({})
    # Constants of small decoders that tests lead through every property, by name; "" is the plain one.
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"": MappingProxyType({})})
    # Checks of scikit-learn that cannot hold of it, each with the reason.
    unmet_checks: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **dict.fromkeys(
                ("check_n_features_in_after_fitting", "check_estimators_partial_fit_n_features"),
                "partial_fit goes on with a session of a fitted decoder; before fit it says so",
            ),
            **dict.fromkeys(
                ("check_methods_sample_order_invariance", "check_methods_subset_invariance"),
                "rows are bins of a time series: what is predicted of one depends on those before it",
            ),
            "check_dtype_object": "what is no number is an InputError, a ValueError; the check asks for a TypeError",
            "check_regressor_data_not_an_array": "a table is refused: its columns would be taken by their place",
        }
    )
    # Parameters that are dicts: their entries are parameters, too (`rule_constants__steps`).
    of_dicts: ClassVar[tuple[str, ...]] = ()
    bin_s: float | None = None
    missing: str = "refuse"
    bin_s_: float
    flat_: bool = False
    metadata_: Mapping[str, Any] = MappingProxyType({})

    # -- training ------------------------------------------------------------------------------------------------

    def fit(self, X, y=None, reset=None) -> Self:
        """Train on one session or a list of them; y names the target or targets, ``"velocity"`` or a list.

        With plain arrays X and y are one session's, or lists of as many. Where it fails, the decoder stays as it was.
        Each session of a list is normalised by its own statistics; days that `bci_adapt.concat` put behind one another
        are one session with one set of them, and make another decoder.

        Raises
        ------
        InputError
            for sessions without the target, of other channels, axes, units or bins than the first; where `bin_s` is
            given and the sessions' is another, or is needed and not given; for labels that are missing altogether.
        """
        with self._unchanged_on_failure():
            for attribute in ("n_features_in_", "n_outputs_", "bin_s_", "flat_", "metadata_"):
                vars(self).pop(attribute, None)
            self._fit(self._training_bins(X, y, reset))
        return self

    def extend(self, X, y=None, reset=None) -> Self:
        """Go on training when a day is added: X is the list of all sessions so far, the new one last, with the targets
        of the fit. A decoder whose training has a closed form is simply fitted again.
        """
        self.require_fitted()
        if not inputs.several(X):
            raise InputError("extend: expected the list of all sessions so far, the new one last, got one session")
        with self._unchanged_on_failure():
            self._extend(self._training_bins(X, y, reset))
        return self

    def _training_bins(self, X, y, reset) -> Sequence[Bins]:
        """Checked sessions to train on, unpacked as they are read; sets what is known of inputs and outputs."""
        sessions = X if isinstance(X, OneByOne) else list(X) if inputs.several(X) else [X]
        if not sessions:
            raise InputError("X: expected at least one session, got an empty list")
        inputs.check_settings(self.missing)
        require_numbers(self.get_params(deep=False))
        scale = self.metadata_.get("power_scale")  # of the fit, where this extends it
        if inputs.is_labelled(sessions[0]):
            plain = self._labelled_training(sessions, y, reset)
        else:
            plain = self._plain_training(sessions, y, reset, several=inputs.several(X))
        held: list[Held] = []
        for place, (session, labels, begins) in enumerate(plain):
            n = getattr(self, "n_features_in_", None), getattr(self, "n_outputs_", None)
            bins = inputs.check_arrays(session, labels, begins, *n, decoder=type(self).__name__)
            if bins.observed.sum() < 2:
                raise InputError(
                    f"X: expected at least 2 bins with neurons to train on, got n_samples={bins.observed.sum()} of them"
                    f"{inputs.called(sessions, place)}"
                )
            if not (bins.weight > 0).any():
                raise InputError(f"y: expected finite labels to train on, got none{inputs.called(sessions, place)}")
            held.append(Held.of(bins))
            self.n_features_in_, self.n_outputs_ = bins.X.shape[1], bins.Y.shape[1]
        made = unpacking(held)
        inputs.require_labels(made, self.metadata_.get("outputs", ()))
        if self.metadata_.get("counts_units", "count") != "count":
            self.metadata_ = {**self.metadata_, "power_scale": scale or features.power_scale(made)}
        return unpacking(held, self._featured)

    def _featured(self, bins: Bins) -> Bins:
        return bins._replace(X=features.features_of(bins.X, self.metadata_))

    def _labelled_training(self, sessions: Sequence[Any], y: Any, reset: Any) -> Iterator[tuple[Any, Any, Any]]:
        """X, y and reset of each labelled session, all with the channels of the first (or of the fit, if it was)."""
        if reset is not None:
            raise InputError("reset: the segments of a session come with it; leave it out")
        known = dict(self.metadata_)
        if not known and y is None and isinstance(sessions[0], xr.Dataset):
            raise InputError("y: expected the name of the target beside a session: fit(session, 'velocity')")
        beside = isinstance(sessions[0], xr.DataArray)
        labels = [y] * len(sessions)
        if beside:
            labels = list(y) if isinstance(y, list | tuple) else [y]
        if len(labels) != len(sessions):
            raise InputError(f"fit: expected as many label arrays as sessions, got {len(labels)} for {len(sessions)}")
        told: list[str] = []
        for session, own in zip(sessions, labels, strict=True):
            if not inputs.is_labelled(session):
                raise InputError("X: expected sessions of one kind, got some with labels and some without")
            arrays, notes = inputs.enter(session, own, known, getattr(self, "bin_s_", None), self.missing)
            for note in notes:
                warnings.warn(note, UserWarning, stacklevel=5)
            self.bin_s_ = self._width(arrays.bin_s if arrays.metadata else None)
            told.append(arrays.session_id)
            known = {**arrays.metadata, "sessions": list(told)}
            yield arrays.X, arrays.y, arrays.reset
        self.metadata_ = known if known.get("channels") else {}

    def _plain_training(self, sessions: Sequence[Any], y: Any, reset: Any, several: bool) -> list[tuple[Any, Any, Any]]:
        if y is None:
            raise InputError(f"y: {type(self).__name__} requires y to be passed, but the target y is None")
        labels = list(y) if several else [y]
        resets = [None] * len(sessions) if reset is None else list(reset) if several else [reset]
        if not sessions or len(sessions) != len(labels) or len(sessions) != len(resets):
            raise InputError(f"fit: expected as many label arrays as sessions, got {len(labels)} for {len(sessions)}")
        self.bin_s_ = self._width(None)
        self.flat_, self.metadata_ = all(inputs.numbers(each, "y").ndim == 1 for each in labels), {}
        return list(zip(sessions, labels, resets, strict=True))

    def _width(self, of_data_s: float | None) -> float:
        """The bin width of what it is fitted on; the constructor's must be the same."""
        if self.bin_s is not None and of_data_s is not None and bin_ticks(self.bin_s) != bin_ticks(of_data_s):
            raise InputError(
                f"bin_s: was made for bins of {self.bin_s:g} s, the session is in bins of {of_data_s:g} s: leave it out"
            )
        width = of_data_s if self.bin_s is None else self.bin_s
        if width is None:
            width = USUAL_BIN_S
            warnings.warn(
                f"bin_s: plain arrays do not say how wide their bins are: taken to be {width:g} s, by which seconds "
                f"become bins; give it, {type(self).__name__}(bin_s=…), or fit on a session",
                UserWarning,
                stacklevel=6,
            )
        return float(width)

    @contextmanager
    def _unchanged_on_failure(self) -> Iterator[None]:
        """The decoder as it was, should training fail: that replaces what it holds and writes into none of it."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    @abstractmethod
    def _fit(self, sessions: Sequence[Bins]) -> None:
        """Train on checked sessions, a year of them perhaps: keep no more of each than its counts. Arrays that the
        decoder holds are replaced, never written into."""

    def _extend(self, sessions: Sequence[Bins]) -> None:
        self._fit(sessions)

    # -- the session ---------------------------------------------------------------------------------------------

    def predict(self, X, reset=None, continuing: bool = False) -> Any:
        """Predict (n_bins, n_outputs) with the weights as they are, changing nothing; of a session, labelled as it is.

        With `continuing` the hidden state and the running statistics go on from the last bin that was adapted to;
        otherwise they start as for a new session.
        """
        return self._said(self._predict(self._enter(X, None, reset, False, continuing), continuing), X)

    def partial_fit(self, X, y=None, reset=None, arrives=None) -> Self:
        """Go on with the session: predict and learn bin by bin. Predictions are kept in ``online_predictions_``,
        (n_bins, n_outputs).

        `arrives` (n_bins,) is the bin, counted from the first of this call and perhaps beyond its last, at whose end
        the label of each row becomes known; ``label_delay_s`` after its own bin when None.
        """
        bins = self._enter(X, y, reset, True, True)
        self.online_predictions_ = self._partial_fit(bins, _checked(arrives, bins))
        self._remember(X)
        return self

    def adapt(self, X, y=None, reset=None, arrives=None) -> Any:
        """Adapt through a new session; returns (n_bins, n_outputs), each bin predicted before its label was used; of a
        session, labelled as it is.

        A session without the target adapts what needs no label. `y` names the target only where the decoder does not
        know it, having been fitted on plain arrays.
        """
        bins = self._enter(X, y, reset)
        arrives = _checked(arrives, bins)
        self.begin()
        self.online_predictions_ = self._partial_fit(bins, arrives)
        if self.metadata_ and inputs.is_labelled(X):
            to = [*self.metadata_.get("adapted_to", ()), X.session_id if isinstance(X, Arrays) else session_id_of(X)]
            self.metadata_ = {**self.metadata_, "adapted_to": to}
        self._remember(X)
        return self._said(self.online_predictions_, X)

    def score(self, X, y=None, reset=None, continuing: bool = False) -> float:  # type: ignore[override]
        """Variance-weighted R² (`bci_adapt.metrics.r2`) of `predict` over the bins with neurons and a usable label; of
        several variables, the mean of theirs that have such labels. It never adapts: what only adaptation depends on –
        rule, rate, delay – is judged by `bci_adapt.evaluate`, or chosen by ``bci-adapt tune``.
        """
        bins = self._enter(X, y, reset, True, continuing)
        predicted = self._predict(bins, continuing)
        mask = (bins.weight > 0) & bins.observed[:, None]
        if not mask.any():
            raise InputError("score: expected bins with neurons and usable labels, got none")
        ends = np.cumsum([len(each["axes"]) for each in self.metadata_.get("outputs", ())] or [self.n_outputs_])
        parts = [part for part in np.split(np.arange(self.n_outputs_), ends[:-1]) if mask[:, part].any()]
        return float(np.mean([r2(bins.Y[:, part], predicted[:, part], mask[:, part]) for part in parts]))

    def matched(
        self, session: Any, y: Any = None, missing: str | None = None, leave_out: bool = False, labels: bool = True
    ) -> tuple[Arrays, list[str]]:
        """A session as this decoder takes it – channels in the decoder's order, labels in the columns of its outputs –
        and notes on what had to be done for it. Parts of the arrays can be handed on (`Arrays.part`).

        `missing` is the rule for channels that do not fit (`inputs.match_channels`), the decoder's own when None; with
        `leave_out` those that the decoder does not know are left out in any case.
        """
        self.require_fitted()
        missing = self.missing if missing is None else missing
        return inputs.enter(session, y, self.metadata_, self.bin_s_, missing, leave_out, labels)

    def _enter(self, X, y=None, reset=None, labels: bool = True, continuing: bool = False) -> Bins:
        """One session, or a piece of one, checked: see `bci_adapt.decoders.inputs`."""
        self.require_fitted()
        if not continuing:  # set since the fit; bins one by one do not pay for it
            require_numbers(self.get_params(deep=False))
        if self.bin_s is not None and self.bin_s != self.bin_s_ and bin_ticks(self.bin_s) != bin_ticks(self.bin_s_):
            raise InputError(
                f"bin_s: fitted in bins of {self.bin_s_:g} s, {self.bin_s:g} s cannot be set: fit it again"
            )
        inputs.require_one(X)
        if inputs.is_labelled(X):
            arrays, notes = self.matched(X, y, labels=labels)
            for note in notes:
                warnings.warn(note, UserWarning, stacklevel=3)
            if reset is not None:
                raise InputError("reset: the segments of a session come with it; leave it out")
            X_, y, reset = arrays.X, arrays.y if arrays.columns else None, arrays.reset
            if continuing and self._follows(X):
                reset = reset.copy()
                reset[0] = False
            X = X_
        elif isinstance(y, str):
            raise InputError("y: the name of a target goes with a session; beside a plain array expected labels")
        n = self.n_features_in_, self.n_outputs_
        return self._featured(inputs.check_arrays(X, y, reset, *n, type(self).__name__))

    @abstractmethod
    def _predict(self, bins: Bins, continuing: bool) -> np.ndarray:
        """Predictions (n_bins, n_outputs) of checked bins; changes nothing."""

    @abstractmethod
    def _partial_fit(self, bins: Bins, arrives: Any) -> np.ndarray:
        """Predict and learn bin by bin; returns the predictions (n_bins, n_outputs)."""

    @abstractmethod
    def begin(self) -> None:
        """Start a new session: hidden state, lags and waiting labels are cleared, weights and statistics stay."""

    @property
    def learns_online(self) -> bool:
        """Whether what it predicts of a session depends on the labels that it is shown of it."""
        return True

    def with_fitted_statistics(self) -> Self:
        """The same decoder, weights as they are now, with the running statistics that its training left: what it would
        be if it went back to the last training session. It shares its arrays with this one: for `predict` only.
        """
        return self

    def require_fitted(self) -> None:
        if not hasattr(self, "n_features_in_"):
            raise NotFitted(f"{type(self).__name__}: fit it (or load a fitted one) before this call")

    def _said(self, predictions: np.ndarray, X: Any) -> Any:
        """Predictions labelled as X is, where X is a session or a DataArray."""
        if isinstance(X, xr.Dataset | xr.DataArray):
            return inputs.labelled_like(predictions, X, self.metadata_.get("outputs", ()))
        return predictions[:, 0] if self.flat_ and not isinstance(X, Arrays) else predictions

    def _remember(self, X: Any) -> None:
        """Keep which bin of a session was the last, so that a piece that follows it is known to."""
        if isinstance(X, xr.Dataset | xr.DataArray):
            self.metadata_ = {**self.metadata_, "stands_at": inputs.place_of(X, -1)}
        elif "stands_at" in self.metadata_:
            self.metadata_ = {key: value for key, value in self.metadata_.items() if key != "stands_at"}

    def _follows(self, X: Any) -> bool:
        """Whether the first bin of X comes directly after the last one that this decoder went through."""
        if "stands_at" not in self.metadata_ or not isinstance(X, xr.Dataset | xr.DataArray):
            return False
        *before, tick = self.metadata_["stands_at"]
        *same, first = inputs.place_of(X, 0)
        return before == same and first == tick + bin_ticks(self.bin_s_)

    # -- parameters and storage ----------------------------------------------------------------------------------

    def __sklearn_tags__(self):
        """Counts are positive, NaN is what was not observed, there may be several outputs, and rows in random order, as
        scikit-learn's checks have them, say little to what reads a time series.
        """
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.allow_nan = True
        tags.target_tags.multi_output = True
        tags.regressor_tags.poor_score = True
        return tags

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; with `deep` also the entries of those that are dicts (``rule_constants__steps``)."""
        found = super().get_params(deep)
        if deep:
            for name in self.of_dicts:
                if isinstance(found[name], Mapping):
                    found |= {f"{name}__{key}": value for key, value in found[name].items()}
        return found

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters; ``rule_constants__steps=4`` sets one entry of a parameter that is a dict."""
        parts = {
            key: key.split("__", 1) for key in parameters if key.split("__", 1)[0] in self.of_dicts and "__" in key
        }
        super().set_params(**{key: value for key, value in parameters.items() if key not in parts})
        for key, (name, entry) in parts.items():
            setattr(self, name, {**(getattr(self, name) or {}), entry: parameters[key]})
        return self

    def save(self, path: str | Path) -> None:
        """Write the fitted decoder to one npz file: parameters as JSON, everything else as arrays; no pickle. A digest
        over all of it is checked by `load`.

        `InputError` for a path that cannot be written, and a parameter that is neither a number nor text nor made of
        such.
        """
        self.require_fitted()
        header = {
            "decoder": self.name,
            "parameters": self.get_params(deep=False),
            "n_features_in_": self.n_features_in_,
            "n_outputs_": self.n_outputs_,
            "bin_s_": self.bin_s_,
            "flat_": self.flat_,
            "metadata": dict(self.metadata_),
        }
        stored.write(Path(path), header, self._fitted_arrays())

    @staticmethod
    def load(path: str | Path) -> Decoder:
        """Read what `save` wrote, as the decoder it was.

        `InputError`, naming the file, where it is something else, is not as it was written, or holds parameters that
        the constructor would refuse, or arrays that no decoder of these parameters has.
        """
        header, arrays = stored.read(Path(path))
        try:
            stored.require_sizes(header)
            parameters = {key: from_plain(value) for key, value in header["parameters"].items()}
            decoder = decoder_class(header["decoder"])(**parameters)
            decoder.n_features_in_, decoder.n_outputs_ = header["n_features_in_"], header["n_outputs_"]
            decoder.flat_ = header.get("flat_", False)
            # Files of the first version say `about`, and have the width of a bin among their parameters.
            decoder.metadata_ = header["metadata"] if "metadata" in header else header.get("about", {})
            stored.require_metadata(decoder.metadata_, decoder.n_features_in_, decoder.n_outputs_)
            decoder.bin_s_ = header["bin_s_"] if "bin_s_" in header else header["parameters"]["bin_s"]
            stored.require_width(decoder.bin_s_)
            decoder._check_parameters()
            stored.require_arrays(decoder.stored, decoder._lengths(), arrays, decoder.name)
            decoder._restore(arrays)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except Exception as error:  # whatever the parameters of a damaged or foreign file lead to
            raise InputError(f"{path}: {stored.WHAT} was expected: {clean(repr(error), 200)}") from error
        return decoder

    def _check_parameters(self) -> None:
        """`InputError` for parameters with which the decoder cannot work."""
        parameters = self.get_params(deep=False)
        defaults = {name: each.default for name, each in inspect.signature(type(self)).parameters.items()}
        stored.require_kinds(parameters, {name: defaults[name] for name in parameters if name in defaults})
        inputs.check_settings(self.missing)
        require_numbers(parameters)

    def _lengths(self) -> dict[str, int | None]:
        """How long the dimensions are that the forms in `stored` name."""
        return {"channels": self.n_features_in_, "outputs": self.n_outputs_}

    def _fitted_arrays(self) -> dict[str, np.ndarray]:
        return {key: np.asarray(getattr(self, key)) for key in self.stored}

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        for key in self.stored:
            setattr(self, key, arrays[key])


def _checked(arrives: Any, bins: Bins) -> np.ndarray | None:
    return None if arrives is None else arrival_bins(arrives, len(bins.X), 0)


def load(path: str | Path) -> Decoder:
    """A decoder that was saved (`Decoder.save`), as it was; `InputError` where the file is something else."""
    return Decoder.load(path)


def decoders() -> dict[str, type[Decoder]]:
    """Every decoder, by name."""
    return variants("bci_adapt.decoders", Decoder)


def decoder_class(name: str) -> Any:
    """The decoder called `name`; `InputError` when there is none."""
    return pick("bci_adapt.decoders", Decoder, name)
