"""A run's report: one self-contained HTML file, made from the run's folder and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt import figures, results
from bci_adapt.errors import InputError
from bci_adapt.recovery import Comparison, Frame, compare, recovery_oracle
from bci_adapt.results import CANARY, arm_label, cell_label, number, score_text
from bci_adapt.storage import file_digest, write_text

MANIFEST, RESULTS, REPORT = "manifest.json", "results.nc", "report.html"


def render_report(run_folder: Path) -> Path:
    """Write ``report.html`` into `run_folder` from its ``manifest.json`` and ``results.nc``; return its path.

    The file asks nothing of the network and needs no script to be read. Raises `InputError` naming the file that is
    missing or unreadable.
    """
    run_folder = Path(run_folder)
    manifest = read_manifest(run_folder / MANIFEST)
    stored = results.read_results(run_folder / RESULTS)
    digests = {
        name: file_digest(run_folder / name)
        for name in ("config.toml", MANIFEST, RESULTS)
        if (run_folder / name).is_file()
    }
    target = run_folder / REPORT
    write_text(target, render(manifest, stored, digests))
    return target


def read_manifest(path: Path) -> dict[str, Any]:
    """A run's ``manifest.json``; `InputError` names it where it is missing or not a JSON object."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the folder of a run, with {MANIFEST} and {RESULTS} in it")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); run the experiment again") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(manifest).__name__}")
    return manifest


def render(manifest: Mapping[str, Any], stored: results.Results, digests: Mapping[str, str]) -> str:
    """The report as one HTML page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    folder = resources.files(__name__)
    environment = Environment(loader=PackageLoader(__name__, ""), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"score": score_text, "number": _number, "arm": arm_label, "cell": cell_label}
    rows = stored.rows
    summary = results.summarise(rows)
    variables = results.variables(rows)
    recovered, refused = recovery_oracle(rows)
    page = environment.get_template("template.html").render(
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        script=Markup((folder / "sort.js").read_text(encoding="utf-8")),
        title=str(manifest.get("name", "run")),
        created=manifest.get("created", ""),
        rates_tuned=bool(manifest.get("rates_tuned", False)),
        caption=results.caption(bool(manifest.get("rates_tuned", False)), summary),
        facts=_facts(manifest, rows),
        asked=_asked(manifest, rows, variables),
        config=list(_flat(manifest.get("config", {}))),
        channels=_channels(manifest),
        sessions=[_session(session) for session in manifest.get("sessions", [])],
        words={variable: plain_words(rows, variable) for variable in variables},
        tables={variable: results.arm_lines(summary, variable) for variable in variables},
        metrics={variable: _other_metrics(summary, variable) for variable in variables},
        recovered=recovered,
        refused=refused,
        pictures={variable: _pictures(stored, summary, variable, variables, Markup) for variable in variables},
        leaks=_leaks(rows, summary),
        unscorable=_unscorable(manifest, rows),
        failures=_failures(manifest, rows),
        pairs={variable: _pairs(rows, variable) for variable in variables},
        command=manifest.get("command", ""),
        reruns=manifest.get("reruns", []),
        versions=manifest.get("versions", {}),
        digests=digests,
    )
    return page


def plain_words(rows: Frame, variable: str = "velocity") -> list[dict[str, Any]]:
    """Held-out findings in words: ``[{title, sentences: [str, …]}, …]``, every number and comparative from `rows`.

    A difference is called one only where the interval of its paired bootstrap over target days excludes zero; else the
    sentence says "no clear difference".
    """
    tell = _Teller(rows, variable)
    paragraphs = []
    networks = [cell for cell in tell.cells if cell]
    for cell in networks:
        paragraphs.append({"title": f"The {cell_label(cell)} network", "sentences": _network_words(tell, cell)})
    paragraphs.append({"title": "Linear decoders", "sentences": _linear_words(tell, networks)})
    paragraphs.append({"title": "Who is ahead", "sentences": _ahead_words(tell, networks)})
    return [paragraph for paragraph in paragraphs if paragraph["sentences"]]


class _Teller:
    """Held-out scores of arms, and how two of them compare, in words."""

    def __init__(self, rows: Frame, variable: str) -> None:
        self.rows, self.variable = rows, variable
        keep = (rows["variable"] == variable) & (rows["phase"] == "held_out") & (rows["metric"] == "r2")
        scored = rows[keep & (rows["status"] == "ok") & ~rows["canary"]]
        self.summary = {
            (entry["arm"], entry["cell"]): entry
            for entry in results.summarise(scored)
            if entry["n_targets"] and np.isfinite(entry["mean"])
        }
        self.cells = list(
            dict.fromkeys(line["cell"] for line in results.arm_lines(list(self.summary.values()), variable))
        )

    def score(self, arm: str, cell: str) -> str | None:
        entry = self.summary.get((arm, cell))
        return score_text(entry) if entry else None

    def against(self, first: tuple[str, str], second: tuple[str, str]) -> Comparison | None:
        if first not in self.summary or second not in self.summary:
            return None
        return compare(self.rows, first, second, self.variable)

    def sentence(
        self, first: tuple[str, str], second: tuple[str, str], above: str, below: str, level: str
    ) -> Iterator[str]:
        """One sentence out of three, by the sign of the paired difference; none where the two share no day.

        The templates may use {first} and {second} (means on shared pairs) and {change} (first − second, with interval).
        """
        both = self.against(first, second)
        if both is None:
            return
        change = score_text(both.difference._asdict())
        template = {1: above, -1: below, 0: level}[both.sign]
        yield template.format(
            first=number(both.first),
            second=number(both.second),
            change=change if change.startswith(("−", "–")) else f"+{change}",
        )


def _network_words(tell: _Teller, cell: str) -> list[str]:
    name, immediate = cell_label(cell), ("immediate_rmsprop", cell)
    sentences = []
    if frozen := tell.score("frozen", cell):
        sentences.append(f"Frozen as trained on the source session, it scored R² {frozen} held out.")
    for first, second, above, below, level in [
        (
            ("normaliser", cell),
            ("frozen", cell),
            "The causal normaliser alone, without any label, raised this to {first} ({change}).",
            "The causal normaliser alone, without any label, lowered this to {first} ({change}).",
            "The causal normaliser alone, without any label, made no clear difference: {first} ({change}).",
        ),
        (
            immediate,
            ("normaliser", cell),
            "Adapting with immediate derivatives on top of it raised the score to {first} ({change}).",
            "Adapting with immediate derivatives on top of it lowered the score to {first} ({change}).",
            "Adapting with immediate derivatives on top of it made no clear difference: {first} ({change}).",
        ),
        (
            immediate,
            ("immediate_rmsprop_fixed", cell),
            "Without the causal normaliser the same rule scored lower, {second} (with it {change}).",
            "Without the causal normaliser the same rule scored higher, {second} (with it {change}).",
            "Without the causal normaliser the same rule scored {second}, no clear difference (with it {change}).",
        ),
        (
            immediate,
            ("readout", cell),
            "Adapting all weights was better than adapting the readout alone ({first} against {second}, {change}).",
            "Adapting all weights was worse than adapting the readout alone ({first} against {second}, {change}).",
            "Between adapting all weights and the readout alone there was no clear difference "
            "({first} against {second}, {change}).",
        ),
        (
            ("window4_rmsprop", cell),
            immediate,
            "Four steps of history were ahead of one ({first} against {second}, {change}).",
            "Four steps of history were behind one ({first} against {second}, {change}).",
            "Between four steps of history and one there was no clear difference ({first} against {second}, {change}).",
        ),
        (
            ("rtrl_rmsprop", cell),
            immediate,
            "Full RTRL was ahead of immediate derivatives ({first} against {second}, {change}).",
            "Full RTRL was behind immediate derivatives ({first} against {second}, {change}).",
            "Between full RTRL and immediate derivatives there was no clear difference "
            "({first} against {second}, {change}).",
        ),
        (
            ("immediate_rmsprop_ema", cell),
            immediate,
            "Averaging the weights helped ({change}).",
            "Averaging the weights hurt ({change}).",
            "Averaging the weights made no clear difference ({change}).",
        ),
        (
            ("immediate_sgd", cell),
            immediate,
            "Plain SGD was ahead of RMSprop ({change}).",
            "Plain SGD was behind RMSprop ({change}).",
            "Between plain SGD and RMSprop there was no clear difference ({change}).",
        ),
        (
            ("network_oracle", cell),
            immediate,
            f"The {name} network retrained on the target's own stream reached {{first}}, ahead of adapting with "
            "immediate derivatives ({change}).",
            f"The {name} network retrained on the target's own stream reached {{first}}, behind adapting with "
            "immediate derivatives ({change}).",
            f"The {name} network retrained on the target's own stream reached {{first}}: no clear difference from "
            "adapting with immediate derivatives ({change}).",
        ),
    ]:
        sentences += tell.sentence(first, second, above, below, level)
    return sentences


def _linear_words(tell: _Teller, networks: list[str]) -> list[str]:
    sentences = []
    if rls := tell.score("rls", ""):
        sentences.append(f"Recursive least squares on lagged counts, with the same labels, scored {rls}.")
    for cell in networks:
        name = cell_label(cell)
        sentences += tell.sentence(
            ("rls", ""),
            ("immediate_rmsprop", cell),
            f"It was ahead of the {name} network adapted with immediate derivatives ({{change}}).",
            f"It was behind the {name} network adapted with immediate derivatives ({{change}}).",
            f"Between it and the {name} network adapted with immediate derivatives there was no clear difference "
            "({change}).",
        )
    sentences += tell.sentence(
        ("ridge_oracle", ""),
        ("rls", ""),
        "Ridge regression retrained on the target's stream reached {first}, ahead of it ({change}).",
        "Ridge regression retrained on the target's stream reached {first}, behind it ({change}).",
        "Ridge regression retrained on the target's stream reached {first}: no clear difference from it ({change}).",
    )
    if persistence := tell.score("persistence", ""):
        sentences.append(f"Repeating the last known label, without any neuron, scored {persistence}.")
    return sentences


def _ahead_words(tell: _Teller, networks: list[str]) -> list[str]:
    sentences = []
    for one, other in zip(networks[1:], networks, strict=False):
        sentences += tell.sentence(
            ("immediate_rmsprop", one),
            ("immediate_rmsprop", other),
            f"With the same rule the {cell_label(one)} was ahead of the {cell_label(other)} "
            "({first} against {second}, {change}).",
            f"With the same rule the {cell_label(one)} was behind the {cell_label(other)} "
            "({first} against {second}, {change}).",
            f"With the same rule there was no clear difference between the {cell_label(one)} and the "
            f"{cell_label(other)} ({{first}} against {{second}}, {{change}}).",
        )
    not_retrained = [key for key in tell.summary if key[0] in (*results.adaptive(tell.rows), "normaliser", "frozen")]
    ranked = sorted(not_retrained, key=lambda key: -tell.summary[key]["mean"])
    if len(ranked) > 1:
        first, second = ranked[:2]
        sentences.append(
            f"Of all arms that were not retrained, {_who(first)} had the highest held-out mean, {tell.score(*first)}."
        )
        sentences += tell.sentence(
            first,
            second,
            f"Its lead over the next, {_who(second)}, is clear ({{change}}).",
            f"On the pairs it shares with the next, {_who(second)}, it is behind ({{change}}).",
            f"Its lead over the next, {_who(second)}, is no clear difference ({{change}}).",
        )
    return sentences


def _who(key: tuple[str, str]) -> str:
    arm, cell = key
    return f"{arm_label(arm)} ({cell_label(cell)})"


def _facts(manifest: Mapping[str, Any], rows: Frame) -> list[tuple[str, str]]:
    """The counts at the top of the page."""
    jobs = manifest.get("jobs", {})
    ok = rows[(rows["status"] == "ok") & ~rows["canary"]]
    failed = rows[rows["status"] == "failed"].drop_duplicates(results.RUN)
    return [
        ("target days", str(ok["target"].nunique())),
        ("pairs of sessions", str(len(ok[["source", "target"]].drop_duplicates()))),
        ("seeds", str(ok["seed"].nunique())),
        ("jobs run / reused", f"{jobs.get('executed', 0)} / {jobs.get('reused', 0)}"),
        ("failed runs", str(max(len(failed), len(jobs.get("failed", []))))),
    ]


def _asked(manifest: Mapping[str, Any], rows: Frame, variables: list[str]) -> str:
    """One sentence on the question, from the rows."""
    scored = rows[~rows["canary"] & (rows["status"] == "ok")]
    if scored.empty:
        return "No pair of sessions of this run was scored."

    def span(column: str, unit: str) -> str:
        values = np.unique(scored.loc[scored["arm"].isin(results.adaptive(scored)), column].dropna())
        values = [f"{value:g}" for value in values]
        return f"{values[0] if len(values) == 1 else '–'.join([values[0], values[-1]])} {unit}" if values else ""

    sources, targets = scored["source"].nunique(), scored["target"].nunique()
    text = (
        f"Decoders of {' and '.join(variables)} were trained on {sources} source {_plural('session', sources)} and "
        f"tried on {targets} later target {_plural('session', targets)}."
    )
    if budget := span("budget_s", "s"):
        text += f" Adaptive arms saw the first {budget} of each target as a stream"
        text += f", each label {delay} late" if (delay := span("delay_s", "s")) else ""
        text += "; everything after it is held out, with weights frozen."
    return text


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested config as ``(dotted.key, text)``."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _session(session: Mapping[str, Any]) -> dict[str, Any]:
    fraction = session.get("valid_fraction")
    return {
        "session_id": session.get("session_id", ""),
        "date": session.get("date") or "",
        "minutes": session.get("minutes"),
        "n_channels": session.get("n_channels", ""),
        "valid": "–" if fraction is None else f"{100 * fraction:.1f} %",
        "origin": _origin(session),
        "warnings": list(session.get("warnings") or []),
    }


def _origin(session: Mapping[str, Any]) -> str:
    """Where a session is from: dandiset, version and path with their licence, else the file's name."""
    if not session.get("dandiset"):
        return str(session.get("source_file", ""))
    licence = session.get("licence") or "licence not stated"
    return f"DANDI {session['dandiset']}/{session.get('dandiset_version')}: {session.get('asset_path')} ({licence})"


def _channels(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """On which channels each source and its targets met, a line per target."""
    lines = []
    for entry in manifest.get("channels", []):
        for target, changed in entry.get("targets", {}).items():
            about = {name: entry.get(name) for name in ("source", "policy", "n_channels", "removed")}
            lines.append(about | {"target": target, "zeroed": changed["zeroed"], "left_out": changed["left_out"]})
    return lines


def _other_metrics(summary: list[dict[str, Any]], variable: str) -> dict[str, Any]:
    """Held-out means of every metric but the primary one, a line per arm and cell."""
    held_out = [
        entry
        for entry in summary
        if entry["variable"] == variable and entry["phase"] == "held_out" and not entry["arm"].startswith(CANARY)
    ]
    names = [name for name in dict.fromkeys(entry["metric"] for entry in held_out) if name != "r2"]
    by_metric = {name: results.arm_lines(held_out, variable, name) for name in names}
    values = {
        (line["arm"], line["cell"], name): line["held_out"] for name, lines in by_metric.items() for line in lines
    }
    lines = [
        {
            "arm": line["arm"],
            "cell": line["cell"],
            "values": [values.get((line["arm"], line["cell"], n)) for n in names],
        }
        for line in results.arm_lines(held_out, variable)
    ]
    return {"names": [results.metric_label(name) for name in names], "lines": lines}


def _pictures(
    stored: results.Results, summary: list[dict[str, Any]], variable: str, variables: list[str], markup: Any
) -> dict[str, Any]:
    """The figures of one variable as markup, None where there is nothing to draw."""
    primary = variable == variables[0]  # curves and excerpts are kept for the first variable alone
    unit = str(stored.attrs.get("unit", ""))
    drawn = {
        "arms": (figures.arms_figure(summary, variable), f"{variable} R² of every arm, online and held out"),
        "gap": (figures.gap_figure(stored.rows, variable), f"held-out {variable} R² against days between sessions"),
        "curve": (figures.curve_figure(stored.curves) if primary else None, "R² through the target session"),
        "trajectory": (
            figures.trajectory_figure(stored.trajectories, variable, unit) if primary else None,
            f"decoded and true {variable} in a held-out excerpt",
        ),
        "canary": (figures.canary_figure(summary, variable), f"online {variable} R² with and without neurons"),
    }
    return {
        name: markup(figures.svg(figure, f"{variable}-{name}", words)) if figure else None
        for name, (figure, words) in drawn.items()
    }


def _leaks(rows: Frame, summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Verdict of each adaptive arm: ``{arm, leaks, text}``, `leaks` None where no canary can tell; and why not."""
    troubles = results.canary_troubles(rows)
    online = [e for e in summary if e["phase"] == "online" and e["metric"] == "r2" and e["n_targets"]]
    lines = []
    for arm, leaks in results.leak(rows).items():
        parts = [
            f"{cell_label(own['cell'])} {number(canary['mean'])} of {number(own['mean'])}"
            for own in online
            for canary in online
            if own["arm"] == arm and canary["arm"] == CANARY + arm
            if (own["cell"], own["variable"]) == (canary["cell"], canary["variable"])
        ]
        parts += [troubles[arm]] if arm in troubles else []
        lines.append({"arm": arm, "leaks": leaks, "text": "; ".join(parts)})
    return lines


def _unscorable(manifest: Mapping[str, Any], rows: Frame) -> list[dict[str, str]]:
    """Pairs in no mean, with the reason, from the manifest and the rows."""
    listed = [
        {name: str(entry.get(name, "")) for name in ("source", "target", "reason")}
        for entry in manifest.get("unscorable", [])
    ]
    known = {(entry["source"], entry["target"]) for entry in listed}
    marked = rows.loc[rows["status"] == "unscorable", ["source", "target", "reason"]]
    for source, target, reason in marked.drop_duplicates(["source", "target"]).itertuples(index=False):
        if (source, target) not in known:
            listed.append({"source": source, "target": target, "reason": reason})
    return listed


def _failures(manifest: Mapping[str, Any], rows: Frame) -> list[dict[str, Any]]:
    """Failed runs, counted by arm and reason, then failed jobs by label."""
    failed = rows[rows["status"] == "failed"].drop_duplicates(results.RUN)
    lines = [
        {"what": f"{arm_label(arm)} ({cell_label(cell)})", "count": count, "reason": reason}
        for (arm, cell, reason), count in failed.groupby(["arm", "cell", "reason"], sort=False).size().items()
    ]
    jobs = manifest.get("jobs", {}).get("failed", [])
    return lines + [{"what": f"job: {j.get('label', '')}", "count": 1, "reason": j.get("error", "")} for j in jobs]


def _pairs(rows: Frame, variable: str) -> list[dict[str, Any]]:
    """Held-out R² of every pair (mean over seeds): one table per cell, pairs down, arms across."""
    keep = (rows["variable"] == variable) & (rows["phase"] == "held_out") & (rows["metric"] == "r2")
    scored = rows[keep & (rows["status"] == "ok") & ~rows["canary"]]
    keys = ["source", "target", "day_gap"]
    tables = []
    present = set(scored["cell"])
    for cell in [c for c in (*results.CELLS, *sorted(present - set(results.CELLS))) if c in present]:
        means = scored[scored["cell"] == cell].groupby([*keys, "arm"], dropna=False)["value"].mean().unstack("arm")
        arms = sorted(means, key=results.arm_order)
        lines = [
            {"source": source, "target": target, "gap": gap, "values": [float(value) for value in values]}
            for (source, target, gap), values in zip(means.index, means[arms].to_numpy(), strict=True)
        ]
        lines.sort(key=lambda line: (np.isnan(line["gap"]), line["gap"], line["target"]))
        tables.append({"cell": cell, "arms": arms, "lines": lines})
    return tables


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or not np.isfinite(value) else number(value, digits)
