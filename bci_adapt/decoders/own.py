"""A decoder class of the user's own, of a file or a notebook, in the face that every decoder shows to the protocol."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.data.labelled import Arrays
from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.timing import LABEL_DELAY_S, delay_bins
from bci_adapt.errors import InputError

METHODS = ("fit", "predict", "adapt")
TO_KNOW = (
    "let its adapt take `arrives` (n_bins,), the bin at whose end each label becomes known, or `label_delay_s`, or "
    "give it an attribute label_delay_s, and wait for each label"
)
"""How a user's decoder comes to know how late its labels are."""


class Own:
    """A user's own decoder, class or instance, wrapped so that the protocol treats it as any other.

    It has ``fit(X, y)``, ``predict(X)`` and ``adapt(X, y)``: X is counts (n_bins, n_channels) with NaN where not
    observed, y kinematics (n_bins, n_outputs) with NaN where there is no label, both its own copies; of several
    training sessions ``fit`` gets lists. A method that takes ``reset`` gets it, a constructor that takes ``bin_s``,
    ``label_delay_s`` or ``seed`` gets those, and a ``predict`` that takes ``continuing`` goes on from the stream.
    ``adapt`` must return a prediction of each bin made before its label. It is the decoder's to wait for labels: one
    that cannot know how late they are (`knows_delay`) is led at a delay of 0, whatever is asked for.

    Parameters
    ----------
    decoder : a class, which is made here, or an instance, which is used as it is.
    bin_s, label_delay_s, seed : what it is told where it asks.

    Raises
    ------
    InputError
        for something that lacks one of the three methods.
    """

    def __init__(self, decoder: Any, *, bin_s: float, label_delay_s: float = 0.0, seed: int = 0) -> None:
        self.name = decoder.__name__ if isinstance(decoder, type) else type(decoder).__name__
        require_methods(decoder, self.name)
        self.knows_delay = knows_delay(decoder)
        self.bin_s, self.label_delay_s = bin_s, label_delay_s if self.knows_delay else 0.0
        if isinstance(decoder, type):
            given = {"bin_s": bin_s, "label_delay_s": label_delay_s, "seed": seed}
            decoder = decoder(**{name: value for name, value in given.items() if takes(decoder, name)})
        elif hasattr(decoder, "label_delay_s"):
            decoder.label_delay_s = label_delay_s
        self.decoder = decoder

    def fit(self, sessions: Sequence[Arrays]) -> Own:
        """Train on the arrays of sessions."""
        lists = [[each.X.copy() for each in sessions], [each.y.copy() for each in sessions]]
        lists.append([each.reset.copy() for each in sessions])
        self._call("fit", *(part[0] if len(part) == 1 else part for part in lists))
        return self

    def adapt(self, stream: Arrays, arrives: np.ndarray | None = None) -> np.ndarray:
        """Predictions (n_bins, n_outputs) of a stream, each made before its label; `InputError` for another shape."""
        if arrives is None:
            arrives = np.arange(len(stream.X)) + delay_bins(self.label_delay_s, self.bin_s)
        given = {"label_delay_s": self.label_delay_s, "arrives": arrives}
        made = self._call("adapt", stream.X.copy(), stream.y.copy(), stream.reset.copy(), **given)
        return self._shaped("adapt", made, stream)

    def predict(self, session: Arrays, continuing: bool = False) -> np.ndarray:
        """Predictions (n_bins, n_outputs) after the stream; `InputError` for another shape."""
        made = self._call("predict", session.X.copy(), None, session.reset.copy(), continuing=continuing)
        return self._shaped("predict", made, session)

    def _call(self, name: str, X: Any, y: Any, reset: Any, **more: Any) -> Any:
        method = getattr(self.decoder, name)
        keywords = {key: value for key, value in {"reset": reset, **more}.items() if takes(method, key)}
        return method(X, **keywords) if y is None else method(X, y, **keywords)

    def _shaped(self, method: str, predicted: Any, session: Arrays) -> np.ndarray:
        if np.shape(predicted) != session.y.shape:
            raise InputError(f"{self.name}.{method}: expected predictions {session.y.shape}, got {np.shape(predicted)}")
        return np.asarray(predicted, float)


def load_class(path: Path, name: str) -> type:
    """The class `name` of the Python file `path`, which is executed: only ever asked for on the command line.

    Raises
    ------
    InputError
        when the file cannot be read or run, has no such class, or the class lacks fit, predict or adapt.
    """
    spec = importlib.util.spec_from_file_location(f"_own_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"{path}: expected a Python file with a decoder class")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its own module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise InputError(f"{path}: there is no class {name}; a decoder has fit(X, y), predict(X) and adapt(X, y)")
    require_methods(found, f"{path}: class {name}")
    return found


def led(decoder: Any, *, bin_s: float, label_delay_s: float | None = None, seed: int = 0) -> Decoder | Own:
    """A copy of a decoder, ours or a user's own, class or instance, as the protocol leads it through sessions.

    `label_delay_s` replaces its own, where it has one; None leaves that, and is `LABEL_DELAY_S` for a user's decoder
    without. A user's decoder that cannot know of a delay has none. `InputError` for something that is no decoder.
    """
    ours = decoder if isinstance(decoder, type) else copy.deepcopy(decoder)
    if not isinstance(ours, Decoder):
        delay_s = getattr(ours, "label_delay_s", LABEL_DELAY_S) if label_delay_s is None else label_delay_s
        return Own(ours, bin_s=bin_s, label_delay_s=float(delay_s), seed=seed)
    if label_delay_s is not None and "label_delay_s" in ours.get_params():
        ours.set_params(label_delay_s=label_delay_s)
    return ours


def require_methods(decoder: Any, name: str) -> None:
    """`InputError` unless a decoder has fit, predict and adapt."""
    if lacking := [method for method in METHODS if not callable(getattr(decoder, method, None))]:
        raise InputError(f"{name} lacks {', '.join(lacking)}; a decoder has fit(X, y), predict(X) and adapt(X, y)")


def knows_delay(decoder: Any) -> bool:
    """Whether a decoder, class or instance, can know how late its labels are: it has ``label_delay_s``, or its
    ``adapt`` takes that or ``arrives``. Else it works without a delay.
    """
    own = takes(decoder, "label_delay_s") if isinstance(decoder, type) else hasattr(decoder, "label_delay_s")
    return own or takes(decoder.adapt, "label_delay_s") or takes(decoder.adapt, "arrives")


def require_known_delay(own: Own, asked: float | str | None) -> None:
    """`InputError` where labels of a user's decoder are to be late in a way that it cannot know of; a warning where
    nothing was asked for, so that they come with their bins.
    """
    if asked == "trial_end" and not takes(own.decoder.adapt, "arrives"):
        raise InputError(
            f"{own.name}: label_delay_s='trial_end' would not be applied, its adapt does not take `arrives` (n_bins,), "
            "the bin at whose end each label becomes known: let it take that, or give label_delay_s=0"
        )
    if own.knows_delay or asked == 0.0:
        return
    if asked is not None:
        raise InputError(
            f"{own.name}: label_delay_s={asked:g} would not be applied, it does not know of a delay: {TO_KNOW}; or "
            "give label_delay_s=0"
        )
    warnings.warn(
        f"{own.name}: does not know how late labels are and has each with its bin, label_delay_s is 0: {TO_KNOW}",
        UserWarning,
        stacklevel=3,
    )


def takes(call: Any, name: str) -> bool:
    """Whether a method or constructor has a parameter `name`."""
    return name in inspect.signature(call).parameters
