"""A list of sessions judged: which share their columns, which do not, and which columns fit another channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from bci_adapt.data.same_columns.agreement import FOREIGN, MARGIN, SAME, UNSURE, Agreement, agreement, shared
from bci_adapt.data.same_columns.fingerprints import Fingerprint, fingerprint
from bci_adapt.data.same_columns.moved import moved, pooled
from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean

PARTLY = "partly"
N_REFERENCES = 4  # sessions, those most alike, that a session's columns are held against one by one
N_NAMED = 8
MAX_APART = 16
"""Sessions that lie further apart in the list are not compared: they are linked through those between them."""


@dataclass(frozen=True)
class ColumnsOf:
    """One session among the others: `verdict` is `SAME`, `PARTLY`, `FOREIGN` or `UNSURE`, `sentence` says it in words.

    `best` is its agreement with the session that it agrees with best; None where it could be compared with none.
    `moved` names columns that fit another channel, for `PARTLY`.
    """

    session_id: str
    verdict: str
    sentence: str
    best: Agreement | None = None
    moved: dict[str, str] = field(default_factory=dict)

    @property
    def findings(self) -> list[str]:
        """The sentence, where its columns are not those of the others, wholly or in part, or may not be; where there
        was too little to compare nothing was found.
        """
        doubtful = self.verdict == UNSURE and self.best is not None and not self.best.why
        return [self.sentence] if doubtful or self.verdict in (FOREIGN, PARTLY) else []

    def to_json(self) -> dict[str, Any]:
        best = None if self.best is None else {k: _finite(v) for k, v in asdict(self.best).items()}
        return {
            "session": self.session_id,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "best": best,
            "moved": dict(self.moved),
        }


@dataclass(frozen=True)
class SameColumns:
    """Sessions judged, in their order; `usual` is the lowest and highest agreement of those that share columns."""

    sessions: tuple[ColumnsOf, ...]
    usual: tuple[float, float] | None

    @property
    def findings(self) -> list[str]:
        """The findings of all sessions."""
        return [text for each in self.sessions for text in each.findings]

    def to_json(self) -> dict[str, Any]:
        usual = None if self.usual is None else list(self.usual)
        return {"usual": usual, "margin": MARGIN, "sessions": [each.to_json() for each in self.sessions]}


def same_columns(sessions: Sequence[xr.Dataset]) -> SameColumns:
    """Judge sessions by their counts; one with too little data is told as such. See `judge`."""
    found: list[Fingerprint | str] = []
    for session in sessions:
        try:
            found.append(fingerprint(session))
        except InputError as error:
            found.append(str(error))
    among = judge([each for each in found if isinstance(each, Fingerprint)])
    told = iter(among.sessions)
    judged = [
        next(told)
        if isinstance(each, Fingerprint)
        else ColumnsOf(str(session.attrs.get("session_id", "session")), UNSURE, each)
        for session, each in zip(sessions, found, strict=True)
    ]
    return SameColumns(tuple(judged), among.usual)


def judge(sessions: Sequence[Fingerprint]) -> SameColumns:
    """Judge sessions by their fingerprints.

    Two share their columns where `Agreement.verdict` says so, whatever the days between them. The largest group of
    sessions linked in this way, of equal ones the earliest, is *the others*; a session outside it is foreign where
    nothing links it to the group and at least one comparison excludes it. Channels are taken by their names.
    """
    n = len(sessions)
    pairs = {
        (i, j): agreement(sessions[i], sessions[j])
        for i, j in combinations(range(n), 2)
        if j - i <= MAX_APART and sessions[i].named and sessions[j].named
    }
    n_compared = max(1, min(n - 1, 2 * MAX_APART))
    verdicts = {pair: found.verdict(n_compared) for pair, found in pairs.items()}
    group = _largest(n, [pair for pair, verdict in verdicts.items() if verdict == SAME])
    best = [_best(i, group, pairs) for i in range(n)]
    inside = [found.kept for i in group if (found := best[i]) is not None]
    usual = (min(inside), max(inside)) if len(group) > 1 else None
    judged = []
    for i, session in enumerate(sessions):
        others = [pair for pair in pairs if i in pair and (set(pair) - {i}) & set(group)]
        judged.append(_judged(session, i in group, best[i], [verdicts[pair] for pair in others], usual))
        if judged[-1].verdict != FOREIGN and best[i] is not None and len(group) > 1 - (i not in group):
            judged[-1] = _with_moved(judged[-1], i, sessions, group, pairs)
    return SameColumns(tuple(judged), usual)


def _largest(n: int, links: Sequence[tuple[int, int]]) -> list[int]:
    """Return the largest set of sessions that `links` connect, of equally large ones that of the earliest."""
    label = list(range(n))
    for i, j in links:
        low, high = sorted((label[i], label[j]))
        label = [low if each == high else each for each in label]
    groups = [[i for i in range(n) if label[i] == each] for each in dict.fromkeys(label)]
    return max(groups, key=len, default=[])


def _best(i: int, group: Sequence[int], pairs: dict[tuple[int, int], Agreement]) -> Agreement | None:
    """The agreement of session i with the one of the group that it agrees with best; None with nothing to compare."""
    own = [found for pair, found in pairs.items() if i in pair and (set(pair) - {i}) & set(group)]
    known = [found for found in own if not found.why]
    return max(known, key=lambda found: found.kept) if known else own[0] if own else None


def _judged(
    session: Fingerprint, inside: bool, best: Agreement | None, verdicts: Sequence[str], usual: Any
) -> ColumnsOf:
    """What is said of one session, given its agreements with the group and the verdicts on each."""
    name = clean(session.session_id)
    if best is None:
        if session.named:
            return ColumnsOf(session.session_id, SAME, f"{name}: no other session to compare its columns with")
        why = "its channels are numbers, which mean nothing in another session"
        return ColumnsOf(session.session_id, UNSURE, f"{name}: columns not compared with those of others: {why}")
    if best.why:
        return ColumnsOf(session.session_id, UNSURE, f"{name}: cannot say whose columns these are: {best.why}", best)
    kept = f"{best.kept:.2f} of the pattern of correlations is kept (log rates: {best.rates:.2f})"
    if inside and len(verdicts) and SAME in verdicts:
        return ColumnsOf(session.session_id, SAME, f"{name}: the columns of the other sessions: {kept}", best)
    expected = f"{MARGIN:g} and more was expected"
    if usual:
        expected = f"where {' to '.join(dict.fromkeys(f'{each:.2f}' for each in usual))} is usual"
    if not inside and FOREIGN in verdicts:
        said = f"{name}: the columns of this session are not those of the others: at most {kept}, {expected}"
        return ColumnsOf(session.session_id, FOREIGN, said, best)
    if inside and FOREIGN in verdicts:  # the first of sessions that all differ, which are told to differ from it
        return ColumnsOf(session.session_id, SAME, f"{name}: no other session has its columns: {kept}", best)
    low, high = best.bounds()
    said = f"{name}: cannot say whether its columns are those of the others: {kept}, between {low:.2f} and {high:.2f}"
    if inside:  # the first of sessions of which none is certain
        return ColumnsOf(session.session_id, SAME, said, best)
    said += f", {expected}"
    return ColumnsOf(session.session_id, UNSURE, said, best)


def _with_moved(
    said: ColumnsOf,
    i: int,
    sessions: Sequence[Fingerprint],
    group: Sequence[int],
    pairs: dict[tuple[int, int], Agreement],
) -> ColumnsOf:
    """Add the columns of session i that fit another channel than in the sessions most like it."""
    own = {each: found for each in group if (found := pairs.get((min(i, each), max(i, each)))) and not found.why}
    others = sorted(own, key=lambda each: -own[each].kept)
    session = sessions[i]
    references: list[Fingerprint] = []
    for each in others[:N_REFERENCES]:
        session, reference = shared(session, sessions[each])
        references = [shared(session, known)[1] for known in references] + [reference]
    found = moved(pooled(references), session) if references else {}
    if not found:
        return said
    listed = ", ".join(f"{clean(column)} (fits {clean(channel)})" for column, channel in [*found.items()][:N_NAMED])
    more = f" and {len(found) - N_NAMED} more" if len(found) > N_NAMED else ""
    sentence = (
        f"{clean(said.session_id)}: {len(found)} of {len(session.channels)} columns fit another channel of the other "
        f"sessions better than their own: {listed}{more}"
    )
    return ColumnsOf(said.session_id, PARTLY, sentence, said.best, found)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
