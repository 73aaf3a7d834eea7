"""Pairs of sessions: which a config names, whether they can be scored, on which channels they meet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bci_adapt.errors import InputError
from bci_adapt.experiment.config import EARLIER, Config, PairSection
from bci_adapt.ground.jobs import Job

LEAST_LABELS_S = 1.0


@dataclass(frozen=True)
class Pair:
    """Source sessions, trained on together, and a later target session, by id."""

    sources: tuple[str, ...]
    target: str

    @property
    def source(self) -> str:
        """The source sessions in one word, as the long table names them; of more than three the first and the last."""
        first, *others = self.sources
        return "+".join([first, *(others if len(others) < 3 else [f"{len(others) - 1} more", others[-1]])])


def choose_pairs(
    sections: Sequence[PairSection], session_ids: Sequence[str], unfit: Collection[str] = ()
) -> list[Pair]:
    """The pairs that sections of a config name over sessions in chronological order; a target must be later than all
    of its sources. Sessions that are `unfit` are no sources of a section whose sources are all earlier days.
    """
    pairs = []
    for section in sections:
        named = section.source if section.source != (EARLIER,) else ()
        sources = sorted({_find_session(name, session_ids) for name in named}, key=list(session_ids).index)
        for name in section.targets:
            target = _find_session(name, session_ids)
            if not named:
                sources = [each for each in session_ids[: session_ids.index(target)] if each not in unfit]
            if not sources:
                raise InputError(f"pairs: no day before {target} can be trained on")
            if session_ids.index(target) <= session_ids.index(sources[-1]):
                raise InputError(f"pairs: target {target} is not later than its source {sources[-1]}")
            pairs.append(Pair(tuple(sources), target))
    return list(dict.fromkeys(pairs))


def _find_session(name: int | str, session_ids: Sequence[str]) -> str:
    if isinstance(name, int):
        if not 1 <= abs(name) <= len(session_ids):
            raise InputError(f"pairs: session number {name} is asked for, there are {len(session_ids)}")
        return session_ids[name - 1 if name > 0 else name]
    found = [name] if name in session_ids else [each for each in session_ids if name in each]
    if len(found) != 1:
        what = f"{len(found)} sessions match" if found else "no session matches"
        raise InputError(f"pairs: {what} {name!r}; there are: {', '.join(session_ids)}")
    return found[0]


def unscorable(session: Any, config: Config, in_trial: bool = False) -> str:
    """Why a target session gives no score; empty where it does.

    A held-out part needs `min_held_out_s` seconds of usable labels, and an output with at least a tenth of the stream's
    variance: R² against a cursor that hardly moves is a division by nothing. With `in_trial` both variances are of bins
    inside trials, which are those that are scored. Single outputs that hardly move are left out by the score job.
    """
    import numpy as np

    from bci_adapt.data.labelled import session_arrays
    from bci_adapt.data.scorable import LEAST_SHARE, hardly_move, variances

    arrays = session_arrays(session, config.variables, config.target_lag_bins)
    n_stream = arrays.n_stream(config.stream_s)
    early, late = variances(arrays, n_stream, in_trial)
    scored = slice(None) if arrays.in_trial is None or not in_trial else arrays.in_trial[n_stream:]
    for variable, outputs in arrays.columns.items():
        parts = arrays.y[:n_stream, outputs], arrays.y[n_stream:, outputs]
        usable_s = [config.bin_s * np.isfinite(part).all(axis=1).sum() for part in parts]
        if usable_s[1] < config.min_held_out_s:
            return (
                f"{usable_s[1]:.1f} s of usable {variable} labels are held out, "
                f"at least {config.min_held_out_s:g} s are needed"
            )
        if usable_s[0] < LEAST_LABELS_S:
            return f"no usable {variable} labels in the adaptation stream"
        if not np.isfinite(parts[1][scored]).any():
            return f"no usable {variable} labels inside trials of the held-out part"
        before, after = early[outputs].sum(), late[outputs].sum()
        if hardly_move(early[outputs], late[outputs]).all() and after < LEAST_SHARE * before:
            return f"held-out {variable} variance {after:.3g} is below a tenth of the stream's {before:.3g}"
    return ""


def require_source(session: Any, config: Config) -> None:
    """Raise `InputError` unless a source session has labels a decoder can learn from: a second of them, and movement in
    every axis.
    """
    import numpy as np

    from bci_adapt.data.labelled import session_arrays

    arrays = session_arrays(session, config.variables)
    for variable, outputs in arrays.columns.items():
        y, wrong = arrays.y[:, outputs], ""
        usable = np.isfinite(y).all(axis=1)
        usable_s = config.bin_s * usable.sum()
        if usable_s < LEAST_LABELS_S:
            wrong = f"{usable_s:.1f} s of usable {variable} labels, at least {LEAST_LABELS_S:g} s are needed"
        elif still := [axis for axis, each in zip(arrays.axes[outputs], y[usable].T, strict=True) if np.ptp(each) == 0]:
            wrong = f"{variable} that never changes in axis {', '.join(still)}"
            raise InputError(
                f"{arrays.session_id}: this source session has {wrong}; leave it out of pairs, or say in "
                f"[axes] which of {variable} are decoded"
            )
        if wrong:
            raise InputError(f"{arrays.session_id}: this source session has {wrong}; leave it out of pairs")


def unusable_halves(session: Any, config: Config, in_trial: bool = False) -> str:
    """Why a source session cannot be a pair without drift, its earlier half the source and its later half the target;
    empty where it can. All of the later half is scored, so that it needs no held-out part of its own length.
    """
    from bci_adapt.experiment.jobs.halve import half_of

    try:
        require_source(half_of(session, 0), config)
    except InputError as error:
        return str(error)
    short = config.model_copy(update={"min_held_out_s": LEAST_LABELS_S})
    return unscorable(half_of(session, 1), short, in_trial)


@dataclass(frozen=True)
class Channels:
    """The channels that a source and its targets share, by `policy`, and those `removed` by `rules` of quality."""

    names: list[str]
    policy: str
    removed: list[str]
    rules: tuple[str, ...] = ()

    def job(self, prepared: Job, session: Any) -> Job:
        """The job that brings a prepared session to these channels: `prepared` itself where it has them already."""
        from bci_adapt.data.channels import policy_of

        if session["channel"].values.tolist() == self.names and self.policy == policy_of(session) != "pool":
            return prepared
        return Job(
            kind="select",
            function="bci_adapt.experiment.jobs.select:run",
            stem=f"{prepared.stem}_channels",
            folder="sessions",
            suffix=".nc",
            parameters={
                "channels": self.names,
                "policy": self.policy,
                "removed": self.removed,
                "reason": f"flagged on the source session: {', '.join(self.rules)}",
            },
            inputs={"session": prepared},
            label=f"channels of {prepared.stem}",
            cost=0.5,
        )


def match_channels(
    config: Config, sources: Sequence[str], targets: Sequence[str], sessions: Mapping[str, Any]
) -> Channels:
    """The channels of source sessions and their targets under the config's policy; `InputError` where they do not meet.

    What `channels.remove` flags on the last source is not among them, with any rule for missing channels.
    """
    from bci_adapt.data.channels import common, policy_for, under
    from bci_adapt.data.qc import flagged_channels, qc
    from bci_adapt.data.sessions import require_one_meaning, require_one_subject

    ids = [*sources, *targets]
    for variable in config.variables:
        require_one_meaning(variable, [sessions[name] for name in ids])
    section, last = config.channels, sessions[sources[-1]]
    policy = section.policy or policy_for([last, *(sessions[name] for name in ids if name != sources[-1])])
    require_one_subject([sessions[name] for name in ids])
    channels = [under(sessions[name], policy)["channel"].values.tolist() for name in ids]
    removed = flagged_channels(qc(under(last, policy)), section.remove) if section.remove else []
    names = [name for name in common(channels, ids, section.missing) if name not in set(removed)]
    if len(names) < 2:
        raise InputError(f"{sources[-1]}: channels.remove takes out {len(removed)} channels and leaves {len(names)}")
    return Channels(names, policy, removed, section.remove)


def matched_entry(
    sources: Sequence[str], found: Channels, sessions: Mapping[str, Any], targets: Sequence[str]
) -> dict[str, Any]:
    """What the manifest says of the channels of a source and its targets."""
    from bci_adapt.data.channels import under

    entry: dict[str, Any] = {
        "source": Pair(tuple(sources), "").source,
        "policy": found.policy,
        "n_channels": len(found.names),
    }
    entry |= {"removed": found.removed, "targets": {}}
    wanted = set(found.names)
    for name in targets:
        have = under(sessions[name], found.policy)["channel"].values.tolist()
        zeroed = [each for each in found.names if each not in set(have)]
        left_out = [each for each in have if each not in wanted and each not in set(found.removed)]
        entry["targets"][name] = {"zeroed": zeroed, "left_out": left_out}
    return entry
