"""Job: two sessions → what changed between them, beside what the decoders of that pair lose and regain."""

import json
from pathlib import Path
from typing import Any

from bci_adapt.data.drift import Drift, Estimate, day, drift
from bci_adapt.data.session_files import read_session
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import write_text


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Write ``{measures: {name: {value, low, high}}, notes}``; of two sessions that cannot be compared, why not."""
    try:
        source, target = (day(read_session(inputs[name]), parameters["variable"]) for name in ("source", "target"))
        found = drift(source, target)
    except InputError as error:
        write_text(out, json.dumps({"measures": {}, "notes": [str(error)]}))
        return
    measures = {name: _finite(value) for name, value in measures_of(found).items()}
    write_text(out, json.dumps({"measures": measures, "notes": list(found.notes)}, allow_nan=False))


def measures_of(found: Drift) -> dict[str, Estimate | float | None]:
    """The measures that are shown for a pair, by name: those of the days less nothing, the baseline is within a day."""
    across = found.across
    measures: dict[str, Estimate | float | None] = {
        "median_abs_log_rate_ratio": across.rates.median_abs_log_ratio,
        "share_of_rates_changed": across.rates.share_changed,
        "kl_nats": across.distance.kl_nats,
        "mmd2": across.distance.mmd2,
    }
    if across.tuning is not None:
        measures |= {
            "pd_excess_deg": found.pd_excess_deg,
            "share_of_pds_changed": across.tuning.share_pd_changed,
            "tuning_similarity": across.tuning.corrected_similarity,
        }
    if across.direction_distance is not None:
        measures["movement_direction_distance"] = across.direction_distance
    return measures


def _finite(value: Estimate | float | None) -> dict[str, float | None]:
    numbers = (value.value, value.low, value.high) if isinstance(value, Estimate) else (value, None, None)
    names = ("value", "low", "high")
    return {
        name: None if number is None or number != number else float(number)
        for name, number in zip(names, numbers, strict=True)
    }
