"""Sessions that hold the power of a band, not counts: every decoder runs on them, in whatever unit the power is."""

import numpy as np
import pytest
import xarray as xr
from test_explain import LESS

import bci_adapt as ba
from bci_adapt.data import drift
from bci_adapt.data.labelled import session_arrays
from bci_adapt.decoders.base import decoders
from bci_adapt.decoders.features import features_of, raw_of
from bci_adapt.errors import InputError
from bci_adapt.experiment import comparing
from bci_adapt.experiment.jobs import counterfactual
from bci_adapt.ground.storage import cache_root

NAMES = [f"e{i}" for i in range(8)]


def power_day(number, n_bins=4000, scale=1e-6, **change):
    """Power that follows a 2-D velocity linearly, its noise a tenth of its mean, channels of different size."""
    rng = np.random.default_rng(number)
    steps = np.arange(n_bins) * 0.05
    phase = rng.uniform(0, 6.28, (2, 3))
    velocity = np.stack([sum(np.sin(0.9 * (k + 1 + a / 3) * steps + phase[a, k]) for k in range(3)) for a in (0, 1)], 1)
    tuning = np.random.default_rng(9).standard_normal((2, 8)) * 0.1
    size = np.geomspace(1, 30, 8)
    power = scale * size * np.clip(1 + velocity @ tuning + 0.1 * rng.standard_normal((n_bins, 8)), 0.01, None)
    if "dead" in change:
        power[:, change["dead"]] = 3 * scale
    given = {"session_id": f"day{number}", "subject": "N", "session_start": f"2020-01-0{number + 1}T00:00:00+00:00"}
    return ba.session(
        counts=power, counts_units=change.get("unit", "V"), target=velocity, target_kind="movement", channels=NAMES,
        target_units="1/s", bin_s=0.05, **given,
    )  # fmt: skip


def test_a_session_of_power_is_what_was_handed_over(tmp_path):
    power = np.random.default_rng(0).uniform(1e-6, 2e-6, (50, 8))
    power[7, 3] = np.nan
    session = ba.session(counts=power, counts_units="uV", bin_s=0.05, session_id="p")
    seen = np.isfinite(power).all(axis=1)
    assert np.array_equal(session["counts"].values[seen], power[seen])
    assert session["counts"].attrs["units"] == "uV"
    assert np.array_equal(session["valid"].values, seen)
    np.savez(tmp_path / "p.npz", counts=power, counts_units="uV", session_id="p")
    assert ba.read(tmp_path / "p.npz", 0.05)["counts"].identical(session["counts"])
    for change, message in [
        ({"counts": power}, "whole numbers.*counts_units"),
        ({"counts": -power, "counts_units": "uV"}, "power ≥ 0"),
        ({"counts": power, "counts_units": " "}, "counts_units must be"),
        ({"spikes": [[0.1], [0.2]], "counts_units": "uV"}, "spikes are counted"),
    ]:
        with pytest.raises(InputError, match=message):
            ba.session(bin_s=0.05, **change)


@pytest.mark.parametrize("name", sorted(decoders()))
def test_every_decoder_reads_power_in_any_unit(name, tmp_path):
    made = decoders()[name]
    constants = dict(made.examples[""]) | ({"outputs": ("velocity",) * 2} if name == "kalman" else {})
    first, second = power_day(0), power_day(1)
    stream, later = ba.split(second, 100.0)
    decoder = made(**constants).fit(first, "movement")
    online, held = decoder.adapt(stream), decoder.predict(later, continuing=True)
    # the same power in another unit, written down as many times as large, is decoded the same
    larger = [each.assign(counts=each["counts"] * 1e6) for each in (first, stream, later)]
    for each in larger:
        each["counts"].attrs["units"] = "V"
    other = made(**constants).fit(larger[0], "movement")
    np.testing.assert_allclose(other.adapt(larger[1]), online, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(other.predict(larger[2], continuing=True), held, rtol=1e-6, atol=1e-6)
    decoder.save(tmp_path / "d.npz")
    assert ba.load(tmp_path / "d.npz").predict(later, continuing=True).equals(held)
    if name == "wiener":
        assert ba.metrics.r2(later["movement"], held) > 0.6
        # taken for counts, the same power drowns in what keeps silent channels quiet: nothing is decoded
        X, y = (session_arrays(first, "movement")[i] for i in (0, 1))
        blind = made(**constants, bin_s=0.05).fit(X, y)
        assert ba.metrics.r2(later["movement"], blind.predict(later["counts"].values)) < 0.1


def test_each_channel_has_a_scale_of_its_own_and_a_dead_one_that_of_others():
    decoder = ba.WienerDecoder(n_lags=2).fit([power_day(0, dead=2), power_day(1, dead=2)], "movement")
    scale = np.array(decoder.metadata_["power_scale"])
    spread = np.sqrt(np.mean([power_day(i, dead=2)["counts"].values.var(axis=0) for i in (0, 1)], axis=0))
    alive = np.arange(8) != 2
    np.testing.assert_allclose(scale[alive], spread[alive], rtol=1e-12)
    assert scale[2] == np.median(spread[alive])
    power = power_day(0)["counts"].values
    np.testing.assert_allclose(features_of(power, decoder.metadata_), power / scale)
    np.testing.assert_allclose(raw_of(features_of(power, decoder.metadata_), decoder.metadata_), power, rtol=1e-12)
    counts = np.arange(12.0).reshape(3, 4)
    assert np.array_equal(features_of(counts, {}), np.sqrt(counts))
    np.testing.assert_allclose(raw_of(features_of(counts, {}), {}), counts)
    # training that goes on keeps the scale that the weights were made in
    decoder.extend([power_day(0), power_day(1), power_day(2)])
    assert decoder.metadata_["power_scale"] == scale.tolist()
    fresh = ba.WienerDecoder(n_lags=2).fit(power_day(2), "movement")
    assert fresh.fit(power_day(0), "movement").metadata_["power_scale"] != scale.tolist()
    still = power_day(0)
    still["counts"].values[:] = 1e-6
    with pytest.raises(InputError, match="constant in all"):
        ba.WienerDecoder(n_lags=2).fit(still, "movement")


def test_counts_know_nothing_of_it():
    rng = np.random.default_rng(0)
    day = ba.session(counts=rng.poisson(2, (400, 4)), target=rng.normal(size=(400, 2)), bin_s=0.05, session_id="c")
    assert "power_scale" not in ba.WienerDecoder(n_lags=2).fit(day, "position").metadata_


def test_power_and_counts_are_not_mixed():
    power, second = power_day(0), power_day(1)
    counts = second.assign(
        counts=xr.DataArray((second["counts"].values * 1e6).astype(np.uint16), second["counts"].coords)
    )
    counts["counts"].attrs["units"] = "count"
    decoder = ba.WienerDecoder(n_lags=2).fit(power, "movement")
    with pytest.raises(InputError, match=r"counts of spikes; the decoder was trained on the power of a band \(V\)"):
        decoder.predict(counts)
    with pytest.raises(InputError, match=r"power of a band \(uV\)"):
        decoder.predict(power_day(1, unit="uV"))


def test_what_changed_is_ranked_in_power_too():
    first, second = power_day(0), power_day(1)
    second["counts"].values[:, 5] *= 3
    found = drift.drift(
        *(drift.day(each, "movement") for each in (first, second)), drift.Settings(n_boot=50, n_permutations=19)
    )
    change = counterfactual.channel_changes(found, spikes=False)
    assert found.channels["common"][int(np.argmax(change))] == "e5"
    assert change[5] == pytest.approx(2.0, abs=0.3)  # of its own mean on the first day


def test_a_run_of_power_from_sessions_to_scores(tmp_path, monkeypatch):
    kernels = tmp_path / "cache" / "kernels"
    kernels.parent.mkdir()
    shared = cache_root() / "kernels"
    shared.mkdir(parents=True, exist_ok=True)
    kernels.symlink_to(shared)
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(tmp_path / "cache"))
    network = LESS["network"] | {"n_hidden": 4, "n_updates": 3, "oracle_updates": 3}
    monkeypatch.setattr(comparing, "QUICK", LESS | {"network": network})
    monkeypatch.setattr(comparing, "ARMS", comparing.ARMS[:1])
    days = [power_day(0), power_day(1)]
    asked = {"stream_s": 60.0, "label_delay_s": 0.25, "quick": True, "workers": 0}
    found = ba.compare(days, "movement", **asked)
    rows = found.rows[found.rows["study"] == ""]
    assert (rows["status"] == "ok").all()
    scores = rows[rows["metric"] == "r2"].set_index(["arm", "phase"])["value"]
    assert scores["rls", "held_out"] > 0.6
    assert scores["canary:rls", "held_out"] < 0.1
    counts = days[1].assign(counts=(days[1]["counts"] * 1e6).astype(np.uint16).assign_attrs(units="count"))
    with pytest.raises(InputError, match=r"day0 holds the power of a band in 'V'; day1 holds counts"):
        ba.compare([days[0], counts], "movement", **asked)
