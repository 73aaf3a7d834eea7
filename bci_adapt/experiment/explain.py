"""Where the R² of one pair of a run went: the frozen decoder, and what it would have scored had one thing not changed.

Every row is a score of the held-out part of the target (of the source day itself for the first), in the bins that the
run counts. Causes overlap – a channel that fell silent has other statistics, too – so that parts need not add up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bci_adapt.data.labelled import load_arrays, session_arrays
from bci_adapt.data.scorable import still_outputs
from bci_adapt.errors import InputError
from bci_adapt.experiment.arm import LINEAR, NETWORK, Arm
from bci_adapt.experiment.building import Builder
from bci_adapt.experiment.config import Config, ControlSection, SweepSection, load_config
from bci_adapt.experiment.pairs import Pair
from bci_adapt.experiment.preparing import prepare_sessions
from bci_adapt.experiment.tuned import read_tuned
from bci_adapt.ground.engine import Outcome, Progress, execute
from bci_adapt.ground.jobs import Job
from bci_adapt.metrics import block_sums
from bci_adapt.results.manifest import MANIFEST, read_manifest
from bci_adapt.results.table import number

MAX_LAG = 3  # bins by which counts are moved, either way
BLOCK_S = 10.0
N_BOOT, SEED = 2000, 0
# What a cause must give back of what was lost to be called the explanation, and the least loss worth explaining.
SHARE, LEAST = 0.25, 0.05

CAUSES = {
    "normaliser": "rates and their spread: the target's own mean and variance of every channel give back {gain} of it "
    "(a causal normaliser, which needs no labels: {causal})",
    "channels": "single channels: put to their mean, those that changed most cost {gain} less than as they are; look "
    "at them with bci-adapt drift and qc (lost or new units, electrodes in another order), leave them out or retrain",
    "lag": "time: counts moved against the movement give back {gain} of it; check the clocks of spikes and movement in "
    "this recording before anything else",
    "": "none of the three by itself; what labels give back beyond them is tuning that changed in many channels",
    "nothing": "nothing much: the frozen decoder does about as well as a decoder of the same day",
}


class Row(NamedTuple):
    """One counterfactual: its R², what it adds to the frozen decoder, and intervals over blocks of `BLOCK_S`."""

    part: str
    what: str
    r2: float
    low: float
    high: float
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None


@dataclass(frozen=True)
class Explanation:
    """The rows of one decoder, what it lost, and the cause that explains most of it (a key of `CAUSES`)."""

    source: str
    target: str
    variable: str
    decoder: str
    rows: list[Row]
    cause: str
    words: str
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self) | {"rows": [row._asdict() for row in self.rows]}


def explain(
    run_folder: Path,
    pair: str,
    *,
    variable: str | None = None,
    data: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    note: Callable[[str], None] = lambda text: None,
    offline: bool = False,
    verify: bool = False,
    sure: bool = False,
) -> tuple[list[Explanation], dict[str, int]]:
    """Explain the pair of a finished run that `pair` names by parts of its sessions' ids, ``source:target``.

    Of the run's first network and first seed, and of the Wiener filter. What the run has done already is reused.
    Returns the explanations and how many jobs were ``executed`` and ``reused``; `note` is told what the source of the
    recordings has to say of them.

    Raises
    ------
    InputError
        for a folder that holds no run, a pair that is not one of its, or recordings that have changed since.
    """
    run_folder = Path(run_folder)
    manifest = read_manifest(run_folder / MANIFEST)
    config = load_config(run_folder / "config.toml", data=data)
    values = read_tuned(run_folder / config.tuned) if config.tuned else None
    variable = variable or config.variables[0]
    if variable not in config.variables:
        raise InputError(f"--variable {variable}: this run decoded {', '.join(config.variables)}")
    # nothing that the run left out is left out here; neither section changes a job that is asked for below
    config = config.model_copy(update={"controls": ControlSection(), "sweeps": SweepSection(arms=())})
    lock = run_folder / "sessions.lock.toml"
    prepared, _ = prepare_sessions(
        config, [*config.pairs, *config.continual], workers=workers, progress=progress, say=say, note=note,
        lock=lock if lock.is_file() else None, offline=offline, verify=verify, sure=sure,
    )  # fmt: skip
    found = _find(pair, prepared.pairs(config.pairs))
    recorded = {each["session_id"]: each.get("source_sha256", "") for each in manifest.sessions}
    for name in (*found.sources, found.target):
        if recorded.get(name, "") != (now := prepared.about[name]["source_sha256"]):
            raise InputError(f"{name}: not the recording of this run (sha256 {now[:12]}…): run the experiment again")
    builder = prepared.builders(config, {}, values)[found.sources]
    still = _still(prepared.sessions[found.target], config, prepared.in_trial, variable)
    plans = [_plan(builder, found, cell, variable, [*still]) for cell in (config.network.cells[0], "")]
    outcome = execute([job for plan in plans for _, _, job, _ in plan], workers=workers, progress=progress)
    _require_done(outcome)
    names = [f"{config.network.cells[0]} network, seed {config.seeds[0]}", "Wiener filter"]
    made = [_explain(found, variable, builder, name, plan, still) for name, plan in zip(names, plans, strict=True)]
    counts = {what: getattr(prepared.outcome, what) + getattr(outcome, what) for what in ("executed", "reused")}
    return made, counts


def _require_done(outcome: Outcome) -> None:
    for failure in outcome.failed:
        told = f"{failure.label} failed:\n{failure.error}"
        raise InputError(failure.message) if failure.is_input_error else RuntimeError(told)


def _find(text: str, pairs: list[Pair]) -> Pair:
    source, colon, target = text.partition(":")
    if not (colon and source and target):
        raise InputError(f"a pair is named SOURCE:TARGET by parts of the ids of its sessions, got {text!r}")
    found = [pair for pair in pairs if source in pair.source and target in pair.target]
    exact = [pair for pair in found if (pair.source, pair.target) == (source, target)]
    if len(found := exact or found) != 1:
        what = f"{len(found)} pairs match" if found else "no pair matches"
        listed = ", ".join(f"{pair.source}:{pair.target}" for pair in found or pairs)
        raise InputError(f"{what} {text!r}: {listed}")
    return found[0]


def _still(session: Any, config: Config, in_trial: bool, variable: str) -> dict[int, str]:
    """Outputs of `variable` that are in no score of the run, by their number in it, with a name and the reason."""
    arrays = session_arrays(session, config.variables, config.target_lag_bins)
    if not in_trial:
        arrays = arrays._replace(in_trial=None)
    outputs = arrays.columns[variable]
    found = still_outputs(arrays, outputs, arrays.n_stream(config.stream_s))
    return {i: f"{arrays.axes[outputs][i]}: {reason}" for i, reason in found.items()}


Step = tuple[str, str, Job, str]  # part, words, job, which of its predictions


def _plan(builder: Builder, pair: Pair, cell: str, variable: str, still: Sequence[int]) -> list[Step]:
    """What is run for one decoder; the frozen one comes second. No choice is made by outputs that are `still`."""
    arms = {arm.name: arm for arm in builder.arms(pair) if arm.cell == cell}
    kind = NETWORK if cell else LINEAR
    frozen = builder.adapt(arms[kind.frozen], pair, arms[kind.frozen].seeds[0])
    learning, refit = _learning(arms, builder.config) if cell else kind.reference, kind.ceiling

    def arm(name: str) -> Job:
        return builder.adapt(arms[name], pair, arms[name].seeds[0])

    ranking = Job(
        kind="rank",
        function="bci_adapt.experiment.jobs.counterfactual:rank",
        stem=f"changed_channels_{pair.source}_{pair.target}",
        folder="results",
        suffix=".json",
        parameters={"variable": variable},
        inputs={"source": builder.sessions[pair.sources[-1]], "target": builder.sessions[pair.target]},
        label=f"channels that changed from {pair.source} to {pair.target}",
        cost=4.0,
    )

    def other(what: str, *, silence: bool = False, **changed: Any) -> Job:
        parameters = {
            "variables": builder.config.variables, "target_lag_bins": builder.config.target_lag_bins,
            "variable": variable, "stream_s": builder.config.stream_s, "statistics": "source", "lags": [0], **changed,
            **({"still": [*still]} if still else {}),
        }  # fmt: skip
        return replace(
            frozen,
            kind="counterfactual",
            function="bci_adapt.experiment.jobs.counterfactual:run",
            stem=f"{what}_{frozen.stem}",
            parameters=parameters,
            inputs={**frozen.inputs, **({"ranking": ranking} if silence else {})},
            label=f"{what}, {frozen.label}",
            cost=2.0,
        )

    lags = sorted(range(-MAX_LAG, MAX_LAG + 1), key=abs)
    steps = [
        ("own day", "its own day: a decoder of the earlier half, on the later half", _own_day(builder, pair, cell), ""),
        ("frozen", "frozen, on the target", frozen, "held_out"),
        ("normaliser", "the target's own statistics, known beforehand", other("own statistics", statistics="target"),
         "predicted"),
        ("normaliser, causal", "a causal normaliser", arm(kind.unlabelled), "held_out"),
        ("channels", "without the channels that changed most", other("channels", silence=True), "predicted"),
        ("lag", "counts moved in time", other("lag", lags=lags), "predicted"),
        ("all three", "own statistics, moved, and without these channels",
         other("all three", statistics="target", lags=lags, silence=True), "predicted"),
        ("labels, adapted", f"adapted with labels ({learning})", arm(learning), "held_out") if learning else None,
        ("labels", f"retrained on the target's stream ({refit})", arm(refit), "held_out"),
    ]  # fmt: skip
    return [step for step in steps if step is not None]


def _learning(arms: dict[str, Arm], config: Config) -> str:
    """The adaptive arm of a network that is shown: the immediate rule where the run has it, else the first one that its
    config asks for, else a standing one.
    """
    taught = [name for name, arm in arms.items() if arm.checked and arm.supervision == "true"]
    order = [NETWORK.reference, *(section.name for section in config.arms), *taught]
    return next((name for name in order if name in taught), "")


def _own_day(builder: Builder, pair: Pair, cell: str) -> Job:
    """The frozen decoder of the source day's earlier half, as the run's control without drift has it."""
    score = builder.without_drift(pair.sources[-1])
    for entry in score.parameters["arms"]:
        if (entry["columns"]["arm"], entry["columns"]["cell"]) == ((NETWORK if cell else LINEAR).frozen, cell):
            job = score.inputs[entry["input"]]
            assert isinstance(job, Job)
            return job
    raise AssertionError("a run without drift has the frozen decoder")


class _Sums(NamedTuple):
    error: np.ndarray
    spread: np.ndarray
    chosen: dict[str, Any]

    def r2(self, weights: np.ndarray) -> np.ndarray:
        """R² of drawn blocks, `weights` (n_draws, n_blocks)."""
        return 1.0 - (weights @ self.error) / (weights @ self.spread)


def _sums(job: Job, key: str, builder: Builder, variable: str, still: Collection[int]) -> _Sums:
    """Squared errors and deviations by block, of the outputs that are not `still`; of the whole later half for the own
    day, else of the held-out part.
    """
    target = job.inputs["target"]
    assert isinstance(target, Job)
    arrays = load_arrays(target.path, builder.config.variables, builder.config.target_lag_bins)
    held_out, all_outputs = slice(arrays.n_stream(builder.config.stream_s), None), arrays.columns[variable]
    kept = [i for i in range(all_outputs.start, all_outputs.stop) if i - all_outputs.start not in still]
    outputs = kept if still else all_outputs
    with np.load(job.path, allow_pickle=False) as stored:
        chosen = json.loads(str(stored["chosen"])) if "chosen" in stored.files else {}
        if not key:
            predicted, held_out = np.concatenate([stored["online"], stored["held_out"]]), slice(None)
        else:
            predicted = stored[key][held_out] if key == "predicted" else stored[key]
    y = arrays.y[held_out, outputs]
    counted = np.isfinite(y)
    if builder.in_trial and arrays.in_trial is not None:
        counted &= arrays.in_trial[held_out, None]
    n_bins = max(1, round(BLOCK_S / arrays.bin_s))
    return _Sums(*block_sums(np.where(counted, y, 0.0), predicted[:, outputs], counted, n_bins), chosen)


def _explain(
    pair: Pair, variable: str, builder: Builder, name: str, plan: list[Step], still: Mapping[int, str]
) -> Explanation:
    sums = {part: _sums(job, key, builder, variable, still) for part, _, job, key in plan}
    frozen, rows = sums["frozen"], list[Row]()
    notes = [f"in no score: {each}" for each in still.values()]
    for part, what, _, _ in plan:
        own = sums[part]
        n_blocks = len(own.error)
        draws = np.random.default_rng(SEED).multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), N_BOOT)
        # the first row stands for all blocks, as they are
        scores = own.r2(np.vstack([np.ones(n_blocks), draws]))
        row = Row(part, what + _chosen_words(part, own.chosen, builder), float(scores[0]), *_percentiles(scores))
        if part not in ("own day", "frozen"):
            gains = scores - frozen.r2(np.vstack([np.ones(n_blocks), draws]))
            row = row._replace(change=float(gains[0]))
            row = row._replace(**dict(zip(("change_low", "change_high"), _percentiles(gains), strict=True)))
        rows.append(row)
        if note := own.chosen.get("note"):
            notes.append(f"channels were not told apart: {note}")
    found = {row.part: row for row in rows}
    loss = found["own day"].r2 - found["frozen"].r2
    cause = _cause(loss, found)
    gains = [number(found[part].change or 0.0) for part in (cause, "normaliser, causal") if part in found]
    words = f"lost against its own day: {number(loss)}. What explains it: "
    words += CAUSES[cause].format(**dict(zip(("gain", "causal"), gains, strict=False)))
    return Explanation(pair.source, pair.target, variable, name, rows, cause, words, list(dict.fromkeys(notes)))


def _percentiles(scores: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(scores[1:], [0.025, 0.975])
    return float(low), float(high)


def _chosen_words(part: str, chosen: dict[str, Any], builder: Builder) -> str:
    if part not in ("channels", "lag", "all three"):
        return ""
    words = []
    if lag := chosen["lag"]:
        words.append(f"{1000 * abs(lag) * builder.config.bin_s:g} ms {'later' if lag > 0 else 'earlier'} ones")
    if silent := chosen["silent"]:
        words.append(f"{len(silent)} channels at their mean")
    nothing = "statistics alone do best" if part == "all three" else "as recorded does best"
    return f" ({', '.join(words) or nothing})"


def _cause(loss: float, rows: dict[str, Row]) -> str:
    """What gives back most, if that is a good part of the loss and surely more than nothing.

    The decoder of the own day has half of that day to learn from: a loss against it can be too small, a gain cannot.
    """
    best = max(("normaliser", "channels", "lag"), key=lambda part: rows[part].change or 0.0)
    gain, low = rows[best].change or 0.0, rows[best].change_low or 0.0
    if low > 0 and gain >= max(SHARE * loss, LEAST / 2):
        return best
    return "nothing" if loss < LEAST else ""
