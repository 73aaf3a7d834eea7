"""`ba.compare`: arms and decoders of one's own on sessions in memory."""

import numpy as np
import pytest
from test_cli_comparing import write_day
from test_explain import LESS

import bci_adapt as ba
from bci_adapt.data.session_files import write_session
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.decoders.wiener import WienerDecoder
from bci_adapt.errors import InputError
from bci_adapt.experiment import comparing
from bci_adapt.experiment.config import load_config
from bci_adapt.ground.storage import cache_root
from bci_adapt.results import report

STREAM_S, DELAY_S = 60.0, 0.25


class Mine:
    """Made here, in no file that a worker could load: ours by another way."""

    def __init__(self, label_delay_s, bin_s):
        self.decoder = RLSDecoder(label_delay_s=label_delay_s, n_lags=4, bin_s=bin_s)

    def fit(self, X, y, reset):
        self.decoder.fit(X, y, reset)

    def adapt(self, X, y, reset, arrives):
        return self.decoder.adapt(X, y, reset, arrives)

    def predict(self, X, reset, continuing):
        return self.decoder.predict(X, reset, continuing)


class Unaware(Mine):
    """Knows of no delay: each label is there with its bin."""

    def __init__(self, bin_s):
        super().__init__(0.0, bin_s)

    def adapt(self, X, y, reset):
        return self.decoder.adapt(X, y, reset)


class Broken(Mine):
    def adapt(self, X, y, reset, arrives):
        raise ZeroDivisionError("in my own code")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One cache for this file; compiled loops are the user's own."""
    folder, kernels = tmp_path_factory.mktemp("compare"), cache_root() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    (folder / "cache").mkdir()
    (folder / "cache" / "kernels").symlink_to(kernels)
    return folder


@pytest.fixture(scope="module")
def days(folder):
    files = [write_day(folder, number, kind, n_units=8) for number, kind in enumerate(("mon", "rates"))]
    return [ba.read(file, bin_s=0.05) for file in files]


@pytest.fixture(autouse=True)
def _less(folder, monkeypatch):
    """A few arms of a tiny network, in a cache of their own."""
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(folder / "cache"))
    network = LESS["network"] | {"n_hidden": 4, "n_updates": 3, "oracle_updates": 3}
    monkeypatch.setattr(comparing, "QUICK", LESS | {"network": network})
    monkeypatch.setattr(comparing, "ARMS", comparing.ARMS[:1])


@pytest.fixture
def no_page(monkeypatch):
    """Pages that nobody reads are not drawn."""
    monkeypatch.setattr(report, "render_report", lambda folder: None)


def compared(days, **options):
    return ba.compare(days, stream_s=STREAM_S, label_delay_s=DELAY_S, quick=True, workers=0, **options)


def test_own_decoders_of_a_notebook_are_arms_with_canaries(days):
    wiener = WienerDecoder(n_lags=4)
    own = {"mine": Mine, "ours": RLSDecoder(n_lags=4), "still": wiener}
    with pytest.warns(UserWarning, match="unaware: does not know how late labels are") as told:
        found = compared(days, decoders=own | {"unaware": Unaware})
    assert len([each for each in told if "how late" in str(each.message)]) == 1
    rows = found.rows[found.rows["study"] == ""]
    assert {"mine", "ours", "still", "immediate_rmsprop", "frozen", "rls", "persistence"} <= {*rows["arm"]}
    assert (rows["status"] == "ok").all()
    scores = rows.set_index(["arm", "phase", "metric"])["value"]
    for name in ("mine", "ours", "still"):
        # a decoder of one's own scores as the same decoder through the protocol does
        decoder = WienerDecoder(n_lags=4) if name == "still" else RLSDecoder(label_delay_s=DELAY_S, n_lags=4)
        alone = ba.evaluate(decoder.fit(days[0], "velocity"), days[1], stream_s=STREAM_S)
        for part in ("online", "online_late", "held_out"):
            assert scores[name, part, "r2"] == pytest.approx(alone.r2(part), abs=1e-12)
        canary = scores[f"canary:{name}", "held_out", "r2"]
        assert canary < 0.1 < scores[name, "held_out", "r2"]
    assert set(rows.loc[rows["arm"] == "mine", "delay_s"]) == {DELAY_S}
    alone = ba.evaluate(WienerDecoder().fit(days[0], "velocity"), days[1], stream_s=STREAM_S, label_delay_s=DELAY_S)
    for column, stated in {"delay_s": alone.label_delay_s, "n_labels": alone.n_labels}.items():
        assert set(rows.loc[rows["arm"] == "still", column]) == {stated}, "of one that learns from no label, too"
    at_once = RLSDecoder(label_delay_s=0.0, n_lags=4).fit(days[0], "velocity")
    alone = ba.evaluate(at_once, days[1], stream_s=STREAM_S)
    assert set(rows.loc[rows["arm"] == "unaware", "delay_s"]) == {alone.label_delay_s} == {0.0}
    assert scores["unaware", "online", "r2"] == pytest.approx(alone.r2("online"), abs=1e-12)
    assert not hasattr(wiener, "coef_"), "a copy was fitted"
    page = found.report.read_text(encoding="utf-8")
    assert "mine" in page
    assert "mine" in repr(found)
    assert str(found.report) in repr(found)
    assert load_config(found.folder / "config.toml").label_delay_s == DELAY_S


@pytest.mark.usefixtures("no_page")
def test_files_of_prepared_sessions_are_compared_as_sessions_are(days, folder):
    """What has been computed once is not computed again, by whichever way it comes."""
    first = compared(days)
    paths = [folder / f"{number}.nc" for number in range(2)]
    for day, path in zip(days, paths, strict=True):
        write_session(day, path)
    again = compared(paths)
    np.testing.assert_array_equal(again.rows["value"], first.rows["value"])
    assert again.folder == first.folder
    said = []
    mixed = compared([days[0], paths[1]], say=said.append)
    assert mixed.folder == first.folder
    assert said


def test_what_is_noted_of_the_files_is_shown_and_kept(days, folder, call, request):
    """Arrays that do not say when they were recorded are taken in the order given, by `ba.compare` and the command."""
    paths = [folder / f"undated{number}.npz" for number in range(2)]
    for day, path in zip(days, paths, strict=True):
        named = {"channels": day["channel"].values, "target_units": day["position"].attrs["units"], "bin_s": 0.05}
        times = {"target_time_s": day["time"].values}
        np.savez(path, counts=day["counts"].values, target=day["position"].values, **named, **times)
    found = compared(paths)
    (said,) = found.notes
    assert said == "undated0.npz, undated1.npz do not say when they were recorded: taken in the order given"
    assert f"note: {said}" in repr(found)
    assert said in found.report.read_text(encoding="utf-8")
    request.getfixturevalue("no_page")
    asked = ("compare", *paths, "--stream", STREAM_S, "--label-delay", DELAY_S, "--quick", "--workers", 0)
    code, _, err = call(*asked)
    assert code == 0, err
    assert f"note: {said}" in " ".join(err.split())
    assert compared(days).notes == []
    assert "note:" not in repr(compared(days))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"stream_s": "60"}, "stream_s: expected seconds, more than 0, got '60'"),
        ({"bin_s": "0.05"}, "bin_s: expected seconds"),
        ({"label_delay_s": -1.0}, "label_delay_s: expected seconds, 0 or more, got -1.0"),
        ({"seeds": "3"}, "seeds: expected a whole number, 1 or more, or None, got '3'"),
        ({"workers": 1.5}, "workers: expected a whole number"),
        ({"cells": "tanh"}, r"cells: expected a list of names, got 'tanh': cells=\['tanh'\]"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(days, asked, message):
    with pytest.raises(InputError, match=message):
        ba.compare(days, **asked)


def test_one_session_is_not_two(days, folder):
    for one in (days[0], folder / "mon.nwb", str(folder / "mon.nwb")):
        with pytest.raises(InputError, match=r"expected a list of two sessions or more, got one .*\[monday, tuesday\]"):
            ba.compare(one)


@pytest.mark.parametrize(
    ("decoders", "error", "message"),
    [
        ({"mine": 3}, InputError, "decoders: mine lacks fit, predict, adapt"),
        ({"my own": Mine}, InputError, "names such as 'mine', got 'my own'"),
        ({"rls": Mine}, InputError, "there is an arm of this name already"),
        ({"mine": Broken}, ZeroDivisionError, "in my own code"),
    ],
)
def test_decoders_that_cannot_be_compared(days, decoders, error, message):
    with pytest.raises(error, match=message):
        compared(days, decoders=decoders)


def test_sessions_that_cannot_be_compared(days):
    with pytest.raises(InputError, match="two recordings or more"):
        compared(days[:1])
    with pytest.raises(InputError, match="given twice"):
        compared([days[0], days[0]])
    with pytest.raises(InputError, match="give the earliest recording first"):
        compared(days[::-1])
    with pytest.raises(InputError, match=r"bins of one width, got 0.05 s, 0.1 s"):
        compared([days[0], days[1].assign_attrs(bin_s=0.1)])
    with pytest.raises(InputError, match=r"is prepared in bins of 0.05 s, not of 0.1 s"):
        compared(days, bin_s=0.1)
    with pytest.raises(InputError, match=r"unknown target 'velocty'.*did you mean 'velocity'"):
        compared(days, target="velocty")


def test_a_day_without_a_date_is_not_put_before_one_with(days):
    dated = days[1].assign_attrs(session_start="2020-01-01T00:00:00+00:00")
    undated = days[0].assign_attrs(session_start="1970-01-01T00:00:00+00:00")
    for given in ([undated, dated], [dated, undated]):
        with pytest.raises(InputError, match=r"does not say when it was recorded \(session_start\)") as found:
            compared(given)
        assert "1970" not in str(found.value)
