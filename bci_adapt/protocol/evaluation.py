"""One decoder through one session: what it predicts and how well, by the one prequential loop."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from bci_adapt.data.labelled import Arrays, session_arrays
from bci_adapt.data.scorable import named, still_outputs
from bci_adapt.data.sessions import kinematic_names
from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.own import Own, led, require_known_delay
from bci_adapt.decoders.settings import may_be, require_numbers
from bci_adapt.decoders.timing import LABEL_DELAY_S
from bci_adapt.errors import InputError
from bci_adapt.metrics import score
from bci_adapt.protocol.prequential import Predictions, prequential
from bci_adapt.protocol.supervision import Teaching, stream_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What `evaluate` found.

    `prediction` is on the session's own time: ``predicted_<variable>`` and the true ``<variable>`` (NaN where there
    is no usable label), in the session's units, and ``held_out (time)``, True where weights were held. `scores` has
    a row for each variable, part and kind of bins with every metric of `bci_adapt.metrics.score`: parts are
    ``online``, each bin predicted before its label, ``online_late``, its second half, ``held_out``, and
    ``continuing`` where asked for; bins are ``in trial``, where the session has trials, and ``all``. An output that
    held out has less than a tenth of the stream's variance is in no score: `unscorable` has the reason by axis by
    variable. `n_labels` counts bins of the stream of which any label became known in it; `weight_change` is the
    relative change of the weights, NaN for decoders that do not tell. `decoder` is the copy that adapted, as the
    stream left it. Where it `diverged` scores mean nothing.
    """

    decoder: Any
    prediction: xr.Dataset
    scores: pd.DataFrame
    session_id: str
    stream_s: float
    label_delay_s: float | str
    n_labels: int
    weight_change: float
    diverged: bool
    unscorable: dict[str, dict[str, str]] = field(default_factory=dict)

    def r2(self, part: str = "held_out", variable: str | None = None) -> float:
        """Variance-weighted R² of a part: of bins inside trials, where there are any; of the first variable if None."""
        rows = self.scores.to_dict("records")
        name = rows[0]["variable"] if variable is None else variable
        found = [row["r2"] for row in rows if (row["part"], row["variable"]) == (part, name)]
        if not found:
            raise InputError(f"r2: there is no part {part!r} of {name!r}")
        return float(found[0])

    def __repr__(self) -> str:
        late = self.label_delay_s if isinstance(self.label_delay_s, str) else f"{self.label_delay_s:g} s"
        moved = f", weights moved {self.weight_change:.1%}" if np.isfinite(self.weight_change) else ""
        lines = [f"{self.session_id}: {self.stream_s:.0f} s of stream, {self.n_labels} labels, delay {late}{moved}"]
        lines += ["DIVERGED"] * self.diverged
        lines += [f"  {name} without {', '.join(axes)}: they hardly move" for name, axes in self.unscorable.items()]
        lines += [
            "  {variable:12s} {part:12s} {bins:9s} R² {r2:6.3f}  r {pearson:6.3f}".format(**row)
            for row in self.scores.to_dict("records")
        ]
        return "\n".join(lines)


def evaluate(
    decoder: Any,
    session: xr.Dataset,
    target: str | Sequence[str] | None = None,
    *,
    stream_s: float = 600.0,
    label_delay_s: float | str | None = None,
    supervision: str = "true",
    label_fraction: float = 1.0,
    budget_s: float | None = None,
    budget_trials: int | None = None,
    continuing: bool = False,
    seed: int = 0,
) -> Evaluation:
    """Lead a copy of a fitted decoder through a session, as a living animal would meet it, and score what it predicts.

    The first `stream_s` seconds, at most half of the session, are the stream: each bin is predicted, then what has
    become known is learned. The rest is held out: predicted with the weights held, hidden state and running statistics
    going on. For a decoder that learns bin by bin it is this loop, to the last bit:

    >>> import copy, numpy as np, bci_adapt as ba
    >>> rng = np.random.default_rng(0)
    >>> movement = np.cumsum(rng.normal(size=(400, 2)), axis=0)
    >>> counts = rng.poisson(np.exp(np.clip(movement @ rng.normal(0, 0.1, (2, 6)), -3, 3)))
    >>> tuesday = ba.session(counts=counts, target=movement, bin_s=0.05, session_id="tue")
    >>> decoder = ba.OnlineDecoder(n_hidden=4, n_updates=2, warm_up_s=2.0).fit(tuesday, "position")
    >>> X, y = tuesday["counts"].values, tuesday["position"].values
    >>> mine, n_stream, delay, online = copy.deepcopy(decoder), 200, 10, []  # labels 0.5 s late
    >>> mine.begin()
    >>> for t in range(n_stream):
    ...     due = y[t - delay] if t >= delay else None  # the label whose time has come
    ...     online.append(mine.step(X[t], due))  # predicts, then learns
    >>> held_out = mine.predict(X[n_stream:], continuing=True)
    >>> found = ba.evaluate(decoder, tuesday, stream_s=10.0)
    >>> bool((found.prediction["predicted_position"].values == np.vstack([*online, held_out])).all())
    True

    Parameters
    ----------
    decoder : a `Decoder`, or one of your own with fit, predict and adapt; it stays as it was.
    session : as `bci_adapt.read` or `bci_adapt.session` makes it, with the channels of the decoder.
    target : kinematic variable, or several, that it decodes; None: what it was fitted on.
    label_delay_s : how late labels become known, in seconds, or ``"trial_end"``; None: what the decoder is set to.
        A decoder of your own waits itself: one that cannot know of a delay (`bci_adapt.decoders.own.knows_delay`) has
        none, which is said, and is not led with one. One of ours without such a setting learns from none: 0.5 s.
    supervision : ``true`` labels, ``intention`` (towards the cued target), ``pseudo`` (its own predictions), ``none``.
    label_fraction, budget_s, budget_trials : labels there are: a share of the bins, drawn by `seed`, until so many
        seconds or trials of the stream are over.
    continuing : whether another copy goes on learning through the held-out part.

    Raises `InputError` for a decoder that is not fitted, a session without the target, and settings that cannot be.
    """
    numbers = {"stream_s": stream_s, "label_fraction": label_fraction, "budget_s": budget_s, "seed": seed}
    require_numbers(numbers | {"budget_trials": budget_trials})
    teaching = Teaching(supervision, label_delay_s == "trial_end", label_fraction, budget_s, budget_trials, seed)
    arrays = _arrays(decoder, session, target)
    ours = led(decoder, bin_s=arrays.bin_s, label_delay_s=_delay_s(label_delay_s), seed=seed)
    if isinstance(ours, Own):
        require_known_delay(ours, label_delay_s)
    return _led_through(ours, session, arrays, teaching, label_delay_s, _stream_bins(arrays, stream_s), continuing)


def _led_through(
    ours: Any, session: xr.Dataset, arrays: Arrays, teaching: Teaching, asked: Any, n_stream: int, continuing: bool
) -> Evaluation:
    """What the loop finds with a decoder that is ours, or a user's own in an `Own`, and may be changed; `asked` is the
    label delay that was asked for.
    """
    import pandas as pd

    delay_s = _delay_of(ours, asked)
    itself = teaching.supervision == "pseudo"
    if isinstance(ours, Own) and (continuing or itself):
        raise InputError("a decoder of your own learns in adapt alone: leave out continuing and 'pseudo'")
    if itself and not hasattr(ours, "label_delay_s"):
        raise InputError(f"{type(ours).__name__}: learns from no labels, nor from its own predictions ('pseudo')")
    if itself and teaching.at_trial_end:
        raise InputError("a decoder teaches itself ('pseudo') after its own label delay: leave out 'trial_end'")
    found = prequential(
        ours,
        stream_of(arrays, teaching, session),
        n_stream,
        continuing=stream_of(arrays, teaching.without_budget(), session) if continuing else None,
        teaches_itself=itself,
        label_delay_s=delay_s,
    )
    return Evaluation(
        decoder=ours.decoder if isinstance(ours, Own) else ours,
        prediction=_prediction(session, arrays, found, n_stream),
        scores=pd.DataFrame(scores_of(arrays, found, n_stream)),
        session_id=arrays.session_id,
        stream_s=n_stream * arrays.bin_s,
        label_delay_s="trial_end" if teaching.at_trial_end else delay_s,
        n_labels=found.n_labels,
        weight_change=found.weight_change,
        diverged=found.diverged or not all(np.isfinite(part).all() for part in (found.online, found.held_out)),
        unscorable=named(arrays, n_stream),
    )


def _delay_s(asked: float | str | None) -> float | None:
    """The label delay that is asked for, in seconds; None for the decoder's own and for the end of trials."""
    if asked is None or asked == "trial_end":
        return None
    if not may_be("label_delay_s", asked):
        raise InputError(f"label_delay_s: expected seconds, 0 or more, or 'trial_end', got {asked!r}")
    return float(asked)


def _delay_of(ours: Any, asked: float | str | None) -> float:
    """How late labels become known to a decoder as `led` made it, in seconds: what it is set to; to one that has no
    such setting, as it learns from none, what is asked for.
    """
    own_s = _delay_s(asked)
    return float(getattr(ours, "label_delay_s", LABEL_DELAY_S if own_s is None else own_s))


def _arrays(decoder: Any, session: xr.Dataset, target: str | Sequence[str] | None) -> Arrays:
    """The session as the decoder takes it."""
    if not isinstance(session, xr.Dataset):
        what = f"a list of {len(session)}" if isinstance(session, list | tuple) else type(session).__name__
        raise InputError(f"evaluate: expected one session, an xarray.Dataset, got {what}")
    if isinstance(decoder, Decoder):
        decoder.require_fitted()
        arrays, notes = decoder.matched(session, target)
        if arrays.columns:
            for note in notes:
                warnings.warn(note, UserWarning, stacklevel=3)
            return arrays
        wanted = ", ".join(each["variable"] for each in decoder.metadata_.get("outputs", ()))
        found = ", ".join(kinematic_names(session)) or "none"
        wrong = f"expected {wanted} to score by, it holds {found}" if wanted else "name the target: it is not known"
        raise InputError(f"evaluate: {session.attrs['session_id']}: {wrong}")
    if target is None:
        raise InputError("evaluate: a decoder of your own does not say what it decodes: name the target")
    return session_arrays(session, target)


def _stream_bins(arrays: Arrays, stream_s: float) -> int:
    n_stream = arrays.n_stream(stream_s)
    if not n_stream:
        raise InputError(f"{arrays.session_id}: {len(arrays.X)} bins hold no stream of {stream_s:g} s")
    return n_stream


def scores_of(arrays: Arrays, found: Predictions, n_stream: int) -> list[dict[str, Any]]:
    """The rows of `Evaluation.scores`."""
    late, end = n_stream // 2, len(arrays.X)
    parts = {
        "online": (slice(0, n_stream), found.online),
        "online_late": (slice(late, n_stream), found.online[late:]),
        "held_out": (slice(n_stream, end), found.held_out),
    }
    if len(found.continuing):
        parts["continuing"] = slice(n_stream, end), found.continuing
    kinds = {} if arrays.in_trial is None else {"in trial": arrays.in_trial}
    kinds["all"] = np.ones(len(arrays.X), bool)
    rows = []
    for variable, every in arrays.columns.items():
        axes, still = arrays.axes[every], still_outputs(arrays, every, n_stream)
        outputs = [every.start + i for i in range(len(axes)) if i not in still] if still else every
        scored = tuple(axis for i, axis in enumerate(axes) if i not in still)
        for part, (bins, predicted) in parts.items():
            y = arrays.y[bins, outputs]
            known = np.isfinite(y)
            for kind, chosen in kinds.items():
                mask = known & chosen[bins, None]
                with np.errstate(over="ignore", invalid="ignore"):  # of weights that diverged, which is told
                    values = score(np.where(known, y, 0.0), predicted[:, outputs], mask, scored)
                about = {"variable": variable, "part": part, "bins": kind, "n_bins": int(mask.any(axis=1).sum())}
                rows.append(about | values | {f"r2:{axes[i]}": np.nan for i in still})
    return rows


def _prediction(session: xr.Dataset, arrays: Arrays, found: Predictions, n_stream: int) -> xr.Dataset:
    """Predictions, truth and which bins were held out, on the session's time."""
    predicted = np.vstack([found.online, found.held_out])
    masks = session["valid"].coords  # of time alone: segments and masks
    made = xr.Dataset({"held_out": ("time", np.arange(len(predicted)) >= n_stream)}, masks)
    for name, outputs in arrays.columns.items():
        like = session[name]
        about = {"units": str(like.attrs.get("units", ""))}
        made[f"predicted_{name}"] = xr.DataArray(predicted[:, outputs], like.coords, like.dims, attrs=about)
        made[name] = xr.DataArray(arrays.y[:, outputs], like.coords, like.dims, attrs=about)
    kept = ("session_id", "subject", "session_start", "bin_s", "bin_edge")
    made.attrs = {key: session.attrs[key] for key in kept if key in session.attrs}
    return made
