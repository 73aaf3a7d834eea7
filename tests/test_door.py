"""The one door: how a session, labelled arrays or plain numbers enter a decoder, and how predictions come out."""

import copy
import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.exceptions import NotFittedError

import bci_adapt as ba
from bci_adapt.data.labelled import session_arrays
from bci_adapt.data.sessions import signed

BIN_S, N_BINS = 0.05, 600


def day(seed=0, names=tuple("abcdef"), **options):
    """A session with a silent stretch, a jump in position and a gap in time, all of which must not be learned from."""
    rng = np.random.default_rng(seed)
    velocity = np.cumsum(rng.standard_normal((N_BINS, 2)), axis=0) * 0.2
    velocity -= velocity.mean(axis=0)
    tuning = np.random.default_rng(9).standard_normal((2, 6)) * 0.3
    counts = rng.poisson(np.exp(np.clip(0.8 + velocity @ tuning, -3, 3)))
    counts[100:130] = 0
    position = np.cumsum(velocity, axis=0) * BIN_S
    position[200] += 500.0
    width = options.get("bin_s", BIN_S)
    time_s = (np.arange(N_BINS) + 1) * (BIN_S if isinstance(width, str) else width)
    time_s[400:] += 100.0
    given = {"target_units": "cm", "session_id": f"day{seed}", "subject": "C", "channels": names, "bin_s": BIN_S}
    return ba.session(**{"counts": counts, "target": position, "target_time_s": time_s} | given | options)


def with_masks(session, name="velocity"):
    """Counts and labels taken out of a session: masks and segments come along as coordinates."""
    return session["counts"], session[name]


@pytest.fixture(scope="module")
def monday():
    return day()


def wiener(**constants):
    return ba.WienerDecoder(n_lags=3, **constants)


def test_both_ways_see_the_same_bins_labels_and_resets(monday):
    by_session, by_arrays = wiener().fit(monday, "velocity"), wiener().fit(*with_masks(monday))
    for decoder, given in ((by_session, (monday,)), (by_arrays, with_masks(monday))):
        bins = decoder._enter(*given)
        assert (bins.observed.sum(), bins.reset.sum()) == (N_BINS - 30, 2)
        labelled = (bins.weight > 0).all(axis=1)
        # no label: the silent stretch, the first bin of both segments, 0.4 s round an implausible speed
        assert labelled.sum() == N_BINS - 30 - 2 - 8
        assert np.abs(bins.Y).max() < 100.0
    arrays = session_arrays(monday, "velocity")
    by_hand = wiener(bin_s=BIN_S).fit(arrays.X, arrays.y, arrays.reset)
    for decoder in (by_session, by_arrays, wiener().fit(arrays)):
        assert np.array_equal(decoder.coef_, by_hand.coef_)
        assert decoder.bin_s_ == BIN_S
    unmasked = wiener(bin_s=BIN_S).fit(monday["counts"].values, monday["velocity"].fillna(0.0).values)
    assert not np.allclose(unmasked.coef_, by_hand.coef_), "the masks matter here"


def of(name, dtype):
    """Counts or labels whose mask, or segment, was made something else than it says."""
    return lambda array: array.assign_coords({name: array[name].astype(dtype)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            (of("valid", float), None),
            "X: expected valid to be true or false for each bin, got float64, as after a mean",
        ),
        ((of("valid", object), None), "X: expected valid .* got object"),
        ((None, of("velocity_valid", float)), "y: expected velocity_valid to be true or false .* got float64"),
        ((of("segment", float), None), "expected segment to be whole numbers, one for each bin, got float64"),
    ],
)
def test_masks_that_are_no_masks_are_refused(monday, change, message):
    given = [array if make is None else make(array) for make, array in zip(change, with_masks(monday), strict=True)]
    wiener().fit(*with_masks(monday))
    with pytest.raises(ba.InputError, match=message):
        wiener().fit(*given)
    coarse = monday["counts"].coarsen(time=3).mean()
    with pytest.raises(ba.InputError, match="expected valid to be true or false"):
        wiener().fit(monday, "velocity").predict(coarse)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, x, y: wiener().fit(x.drop_vars("valid"), y), "expected the coordinate valid.*fit\\(session"),
        (lambda s, x, y: wiener().fit(x, y.drop_vars("velocity_valid")), "expected the coordinate velocity_valid"),
        (lambda s, x, y: wiener().fit(x, y.isel(time=slice(1, None))), "share their time axis"),
        (lambda s, x, y: wiener().fit(x, y.assign_coords(time=y["time"] + 0.01)), "share their time axis"),
        (lambda s, x, y: wiener().fit(x, y.values), "expected a DataArray of labels"),
        (lambda s, x, y: wiener().fit(x.drop_vars("segment"), y), "a new segment begins"),
        (lambda s, x, y: wiener().fit(x.drop_vars("channel"), y), "each with its coordinates"),
        (lambda s, x, y: wiener().fit(s), "expected the name of the target"),
        (lambda s, x, y: wiener().fit(s, "speed"), "expected target 'speed', it holds position, velocity"),
        (lambda s, x, y: wiener().fit(s, y), "expected the name of its target"),
        (lambda s, x, y: wiener().fit(s, "velocity", np.zeros(N_BINS, bool)), "segments of a session come with it"),
        (lambda s, x, y: wiener().fit([s, x.values], "velocity"), "of one kind"),
        (lambda s, x, y: wiener(bin_s=0.1).fit(s, "velocity"), "bins of 0.1 s, the session is in bins of 0.05 s"),
        (lambda s, x, y: wiener().fit(s, "velocity").set_params(bin_s=0.1).predict(s), "fitted in bins of 0.05 s"),
        (lambda s, x, y: wiener().fit(s, "velocity").adapt(s, "position"), "fitted on 2 outputs, those of velocity"),
        (lambda s, x, y: wiener().fit(s, "velocity").adapt(x, y.rename("v").assign_coords(v_valid=s["velocity_valid"])),
         "fitted on 2 outputs, those of velocity"),
        (lambda s, x, y: wiener().fit(s, "velocity").predict(day(names=tuple("abcdeg"))), r"day0.*lacks 1 of 6 \(f\)"),
        (lambda s, x, y: wiener().fit(s, "velocity").predict(day(names=tuple("abcdeg"))), r"does not know 1 .*\(g\)"),
        (lambda s, x, y: wiener().fit(s, "velocity").predict(day(1, bin_s=0.1)), "0.1 s, the decoder's are 0.05 s"),
        (lambda s, x, y: wiener().fit(s, "velocity").adapt(day(1, target_units="m")), "in m/s, the decoder was"),
        (lambda s, x, y: wiener().fit(s, "velocity").predict(day(1, subject="M")), "of subject M"),
        (lambda s, x, y: wiener(missing="most").fit(s, "velocity").predict(s), "rule for missing channels"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_sentence(monday, call, message):
    with pytest.raises(ba.InputError, match=message) as found:
        call(monday, *with_masks(monday))
    assert "\n" not in str(found.value)


def test_channels_are_put_in_the_decoders_order_by_name(monday):
    decoder = wiener().fit(monday, "velocity")
    turned = monday.isel(channel=slice(None, None, -1))
    assert np.array_equal(decoder.predict(turned), decoder.predict(monday))
    assert np.array_equal(decoder.predict(with_masks(turned)[0]), decoder.predict(monday))
    assert decoder.score(turned) == decoder.score(monday) > 0.2
    by_position = wiener(bin_s=BIN_S).fit(*(np.asarray(each) for each in session_arrays(monday, "velocity")[:2]))
    assert by_position.score(turned["counts"].values.astype(float), monday["velocity"].values) < decoder.score(monday)
    both = wiener().fit([monday, day(1).isel(channel=[3, 1, 0, 2, 5, 4])], "velocity")
    assert np.array_equal(both.coef_, wiener().fit([monday, day(1)], "velocity").coef_)


def test_the_decoders_policy_counts_missing_channels_as_silent_and_leaves_others_out(monday):
    decoder = wiener(missing="zero").fit(monday, "velocity")
    other = day(names=tuple("abcdeg"))
    silent = monday.copy(deep=True)
    silent["counts"].values[:, 5] = 0
    with pytest.warns(UserWarning, match="missing and count as silent|are left out") as told:
        found = decoder.predict(other)
    assert len(told) == 2
    np.testing.assert_array_equal(found, decoder.predict(silent))
    with pytest.raises(ba.InputError, match="lacks 6 of 6"):
        decoder.predict(day(names=tuple("uvwxyz")))


def test_columns_without_names_are_matched_across_days_only_if_the_user_says_so():
    first, second = day(0, None), day(1, None)
    decoder = wiener().fit(first, "velocity")
    decoder.predict(first)
    with pytest.raises(ba.InputError, match="day1: its channels are columns without names"):
        decoder.predict(second)
    with pytest.raises(ba.InputError, match="columns without names"):
        wiener().fit([first, second], "velocity")
    first, second = ba.match([first, second], by="position")
    assert np.isfinite(decoder.predict(second)).all()


@pytest.mark.parametrize("names", [None, tuple("abcdef")])
def test_a_decoder_of_sessions_matched_by_position_wants_later_ones_matched_so(names):
    raw = [day(seed, names) for seed in range(3)]
    first, second = ba.match(raw[:2], by="position")
    decoder = wiener().fit(first, "velocity")
    third = raw[2].isel(channel=[5, 4, 3, 2, 1, 0])
    for call in (
        lambda: decoder.score(third),
        lambda: decoder.predict(third["counts"]),
        lambda: decoder.adapt(session_arrays(third, "velocity")),
        lambda: wiener().fit([first, raw[2]], "velocity"),
        lambda: ba.evaluate(decoder, third, stream_s=10.0),
    ):
        with pytest.raises(
            ba.InputError, match=r"day2: .*matched by position, this one was not.*match\(\[session\], by="
        ):
            call()
    (matched,) = ba.match([raw[2]], by="position")
    by_hand = decoder.predict(raw[2]["counts"].values, np.r_[True, np.diff(raw[2]["segment"]) != 0])
    observed = raw[2]["valid"].values
    assert np.array_equal(decoder.predict(matched).values[:100], by_hand[:100])
    assert observed[:100].all()
    assert decoder.score(second) == wiener().fit(*with_masks(first)).score(*with_masks(second))
    assert np.array_equal(decoder.predict(raw[0]), decoder.predict(first)), "it was trained on this one"


def test_a_decoder_of_units_that_were_matched_wants_later_ones_matched_so():
    def sorted_units(seed):
        return signed(day(seed).assign_attrs(channel_identity="unit"))

    first, second = ba.match([sorted_units(0), sorted_units(1)], by="unit")
    decoder = wiener().fit(first, "velocity")
    assert np.isfinite(decoder.score(second))
    with pytest.raises(ba.InputError, match=r"day2: .*matched by unit, this one was not.*by='unit'"):
        decoder.score(sorted_units(2))
    with pytest.raises(ba.InputError, match="matched by unit, this one was not"):
        decoder.score(day(2))
    assert np.isfinite(decoder.score(*ba.match([sorted_units(2)], by="unit")))
    pooled = wiener().fit(day(0), "velocity")
    with pytest.raises(ba.InputError, match="day1: its channels are sorted units"):
        pooled.score(sorted_units(1))


def test_arrays_taken_out_of_a_session_say_whose_they_are(tmp_path):
    """What a session refuses, the arrays taken out of it refuse too, in the same words."""
    first, second = day(0, None), day(1, None)
    decoder = wiener().fit(*with_masks(first))
    decoder.predict(with_masks(first)[0] * 1.0)
    for given in (second, with_masks(second)[0], with_masks(second)[0] * 1.0):
        with pytest.raises(ba.InputError, match="day1: its channels are columns without names"):
            decoder.predict(given)
    with pytest.raises(ba.InputError, match="columns without names"):
        wiener().fit([first["counts"], second["counts"]], [first["velocity"], second["velocity"]])
    with pytest.raises(ba.InputError, match="y: is of session day1, X is of day0"):
        wiener().fit(first["counts"], second["velocity"])
    first, second = ba.match([first, second], by="position")
    decoder = wiener().fit(*with_masks(first))
    assert decoder.score(*with_masks(second)) == decoder.score(second)
    decoder.save(tmp_path / "decoder.npz")
    assert ba.load(tmp_path / "decoder.npz").score(*with_masks(second)) == decoder.score(second)


def test_arrays_of_another_animal_are_refused(monday):
    decoder = wiener().fit(*with_masks(monday))
    other = day(1, subject="M")
    for call in (lambda: decoder.predict(other), lambda: decoder.score(*with_masks(other))):
        with pytest.raises(ba.InputError, match="is of subject M, the decoder was trained on C"):
            call()


def test_arrays_made_by_hand_are_matched_by_the_names_they_were_given(monday):
    counts, velocity = (each.copy() for each in with_masks(monday))
    counts = counts.assign_coords(channel=list("abcdef"), time=counts["time"].values)
    velocity = velocity.assign_coords(time=velocity["time"].values)
    decoder = wiener().fit(counts, velocity)
    assert decoder.score(monday) == wiener().fit(monday, "velocity").score(monday)
    numbered = counts.assign_coords(channel=np.arange(6))
    decoder = wiener().fit(numbered, velocity)
    with pytest.raises(ba.InputError, match="columns without names"):
        decoder.predict(numbered)


class TestOut:
    """What comes out of a session is labelled as the session is."""

    def test_one_variable_is_a_data_array(self, monday):
        decoder = wiener().fit(monday, "velocity")
        for found in (decoder.predict(monday), decoder.adapt(monday), decoder.predict(with_masks(monday)[0])):
            assert isinstance(found, xr.DataArray)
            assert (found.name, found.dims, found.attrs["units"]) == ("velocity", ("time", "axis"), "cm/s")
            for name in found.dims:
                assert found[name].identical(found[name].copy(data=monday[name].values))
        assert np.array_equal(found.values, decoder.predict(session_arrays(monday, "velocity")))
        assert np.isfinite((found - monday["velocity"]).where(monday["velocity_valid"])).sum() > 0

    def test_several_variables_are_a_dataset(self, monday):
        decoder = wiener().fit([monday, day(1)], ["velocity", "position"])
        found = decoder.predict(monday)
        assert [*found] == ["velocity", "position"]
        assert [found[name].attrs["units"] for name in found] == ["cm/s", "cm"]
        arrays = session_arrays(monday, ["velocity", "position"])
        assert np.array_equal(np.hstack([found[name] for name in found]), decoder.predict(arrays))
        scores = [
            ba.r2(np.nan_to_num(arrays.y[:, part]), found[name].values, np.isfinite(arrays.y[:, part]))
            for name, part in arrays.columns.items()
        ]
        assert decoder.score(monday) == pytest.approx(np.mean(scores), abs=1e-12)
        assert decoder.metadata_["sessions"] == ["day0", "day1"]

    def test_score_is_r2_over_usable_bins(self, monday):
        decoder = wiener().fit(monday, "velocity")
        arrays = session_arrays(monday, "velocity")
        expected = ba.r2(np.nan_to_num(arrays.y), decoder.predict(arrays), np.isfinite(arrays.y))
        assert decoder.score(monday) == pytest.approx(expected, abs=1e-12)
        raw = ba.r2(np.nan_to_num(monday["velocity"].values), decoder.predict(monday).values)
        assert abs(raw - expected) > 0.1, "unusable bins would show"

    def test_a_session_without_the_target_is_predicted_and_adapted_to_without_labels(self, monday):
        bare = monday.drop_vars(["velocity", "velocity_valid"])
        makers = {"wiener": wiener, "rls": lambda: ba.RLSDecoder(n_lags=3)}
        for make in makers.values():
            decoder, other = make().fit(monday, "velocity"), make().fit(monday, "velocity")
            assert np.array_equal(decoder.predict(bare), decoder.predict(monday))
            arrays = session_arrays(monday, "velocity")
            unlabelled = other.adapt(arrays._replace(y=np.full_like(arrays.y, np.nan)))
            assert np.array_equal(decoder.adapt(bare), unlabelled)
            assert decoder.adapt(bare).attrs["units"] == "cm/s"
            with pytest.raises(ba.InputError, match="usable labels, got none"):
                decoder.score(bare)
        labelled = makers["rls"]().fit(monday, "velocity").adapt(monday)
        assert not np.array_equal(labelled, unlabelled), "labels would show"


def test_a_session_in_pieces_goes_on_where_it_stood(monday, tmp_path):
    """`split` cuts a session inside a segment; the piece that follows begins no segment of its own."""
    whole, pieces = (ba.RLSDecoder(n_lags=3).fit(monday, "velocity") for _ in range(2))
    arrays, _ = whole.matched(monday)
    n = 300
    online = whole.adapt(arrays.part(slice(n)))
    stream, later = ba.split(monday, n * BIN_S)
    assert np.array_equal(pieces.adapt(stream), online)
    pieces.save(tmp_path / "pieces.npz")
    expected = whole.predict(arrays.part(slice(n, None)), continuing=True)
    assert np.array_equal(ba.load(tmp_path / "pieces.npz").predict(later, continuing=True), expected)
    assert pieces.metadata_["adapted_to"] == ["day0"]
    afresh = pieces.predict(later.isel(time=slice(1, None)), continuing=True)
    assert not np.array_equal(afresh, expected[1:]), "a bin is missing between them: a stretch of its own"
    assert np.array_equal(
        pieces.partial_fit(later).online_predictions_,
        whole.partial_fit(*arrays.part(slice(n, None))[:3]).online_predictions_,
    )


def test_the_bins_of_a_session_one_by_one_are_plain_numbers(monday):
    """A row that says whose channels it holds is refused: nobody would look at what it says."""
    decoder = ba.OnlineDecoder(n_hidden=3, n_updates=1, warm_up_s=1.0, label_delay_s=0.0).fit(monday, "velocity")
    counts, velocity = with_masks(monday)
    arrays, late = session_arrays(monday, "velocity"), copy.deepcopy(decoder).set_params(label_delay_s=0.1)
    whole = copy.deepcopy(decoder).adapt(arrays.X[:50], arrays.y[:50])
    for step in (decoder.step, late.step):
        for x, y in (
            (counts[7], None),
            (monday.isel(time=7), None),
            (arrays.part(slice(7, 8)), None),
            (pd.Series(counts.values[7], [*"abcdef"]), None),
            (counts.values[7], velocity[7]),
        ):
            with pytest.raises(ba.InputError, match=r"step: [xy]: expected plain numbers .*\.values.*partial_fit"):
                step(x, y)
        for x, y, message in (
            (counts.values[7:8], None, r"step: x: expected \(6,\), one bin, got \(1, 6\)"),
            (counts.values[7, :5], None, r"step: x: expected \(6,\), one bin, got \(5,\)"),
            (["one"] * 6, None, "step: x: expected numbers"),
            (counts.values[7], 3.0, r"step: y: expected \(2,\), one bin, got \(\)"),
            (counts.values[7], velocity.values[7:8], r"step: y: expected \(2,\), one bin, got \(1, 2\)"),
            (counts.values[7], "left", "step: y: expected numbers"),
        ):
            with pytest.raises(ba.InputError, match=message):
                step(x, y)
    live = [decoder.step(list(arrays.X[t]), arrays.y[t] if t else np.nan) for t in range(50)]
    assert np.array_equal(live, whole), "refusing left it as it was"


def test_targets_are_remembered_and_extended(monday):
    decoder = ba.OnlineDecoder(n_hidden=3, n_updates=1, added_updates=1, warm_up_s=1.0).fit(monday, "velocity")
    decoder.extend([monday, day(1)])
    assert decoder.metadata_["sessions"] == ["day0", "day1"]
    assert decoder.metadata_["channels"] == [*"abcdef"]
    assert decoder.get_params()["bin_s"] is None
    assert decoder.bin_s_ == BIN_S


class TestStored:
    def test_numbers_of_numpy_are_stored_as_plain_ones(self, monday, tmp_path):
        small = {"n_hidden": np.int64(3), "n_updates": 1, "warm_up_s": 1.0, "learning_rate": np.float32(1e-3)}
        decay = np.linspace(0.1, 0.9, 3 * 10).reshape(3, 10)
        makers = [
            wiener(penalty=np.float64(0.5)).set_params(n_lags=np.int64(2)),
            ba.KalmanDecoder(adaptive=np.bool_(True)),
            ba.OnlineDecoder(rule="window", rule_constants={"steps": np.int64(3)}, **small),
            ba.OnlineDecoder(cell="tanh", rule="trace", rule_constants={"decay": decay}, learns=["readout"], **small),
        ]
        for decoder in makers:
            decoder.fit(monday, "velocity")
            decoder.save(tmp_path / "one.npz")
            found = ba.load(tmp_path / "one.npz")
            assert np.array_equal(found.adapt(monday), decoder.adapt(monday))
            np.testing.assert_equal(found.get_params() | {"learns": None}, decoder.get_params() | {"learns": None})
            with np.load(tmp_path / "one.npz") as stored:
                assert "np." not in str(stored["header"])
        with pytest.raises(ba.InputError, match=r"save: expected parameters that are numbers.* got object"):
            wiener().fit(monday, "velocity").set_params(missing=object()).save(tmp_path / "two.npz")
        assert not (tmp_path / "two.npz").exists()

    def test_what_the_decoder_knows_is_stored(self, monday, tmp_path):
        decoder = wiener().fit(monday, "velocity")
        decoder.save(tmp_path / "one.npz")
        found = ba.load(tmp_path / "one.npz")
        assert found.metadata_ == decoder.metadata_
        assert (found.bin_s, found.bin_s_) == (None, BIN_S)
        assert found.predict(monday).identical(decoder.predict(monday))

    def test_files_of_the_first_version_are_read(self, monday, tmp_path):
        decoder = wiener(bin_s=BIN_S).fit(monday, "velocity")
        decoder.save(tmp_path / "new.npz")
        with np.load(tmp_path / "new.npz") as stored:
            arrays = {key: stored[key] for key in stored.files}
        header = json.loads(str(arrays.pop("header")))
        header["about"] = header.pop("metadata")
        for key in ("bin_s_", "flat_", "sha256"):
            del header[key]
        del header["parameters"]["missing"]
        np.savez(tmp_path / "old.npz", header=np.array(json.dumps(header)), **arrays)
        old = ba.load(tmp_path / "old.npz")
        assert old.predict(monday).identical(decoder.predict(monday))
        header["parameters"]["bin_s"] = None
        np.savez(tmp_path / "old.npz", header=np.array(json.dumps(header)), **arrays)
        with pytest.raises(ba.InputError, match=r"old\.npz: bin_s_: expected seconds"):
            ba.load(tmp_path / "old.npz")


class TestPublic:
    def test_what_is_offered_is_there(self):
        for name in ba._PUBLIC:
            assert getattr(ba, name).__name__ in (name, f"bci_adapt.{name}")  # a package that is a function
        assert callable(ba.live)
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            ba.nonsense  # noqa: B018
        assert issubclass(ba.InputError, ValueError)
        with pytest.raises(NotFittedError, match="fit it"):
            wiener().partial_fit(np.ones((3, 2)))
        assert "n_hidden" in str(inspect.signature(ba.recommended))

    def test_a_type_checker_finds_names_and_parameters_that_there_are_not(self, tmp_path):
        """On a file of a user's, which the package's `py.typed` invites."""
        lines = [
            "import bci_adapt as ba",
            "ba.nonsense",
            "ba.recommended(n_hiden=3)",
            "decoder: ba.OnlineDecoder = ba.recommended(n_hidden=3)",
            "score: float = ba.r2([[1.0]], [[1.0]])",
            "ba.load('a.npz').predict(ba.read('a.nc'))",
        ]
        (tmp_path / "mine.py").write_text("\n".join(lines))
        root = Path(ba.__file__).parents[1]
        settings = {"typeCheckingMode": "standard", "extraPaths": [str(root)], "include": ["mine.py"]}
        (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
        checker = Path(sys.executable).with_name("basedpyright")
        done = subprocess.run(
            [checker, "--outputjson", "--pythonpath", sys.executable], cwd=tmp_path, capture_output=True, text=True
        )
        told = json.loads(done.stdout)["generalDiagnostics"]
        errors = {each["range"]["start"]["line"]: each["message"] for each in told if each["severity"] == "error"}
        assert [*errors] == [1, 2]
        assert '"nonsense" is not a known attribute' in errors[1]
        assert 'No parameter named "n_hiden"' in errors[2]
        assert (root / "bci_adapt" / "py.typed").exists()


def test_bins_of_plain_arrays_are_said_to_be_taken_as_usual(monday):
    arrays = session_arrays(monday, "velocity")
    with pytest.warns(UserWarning, match="plain arrays do not say how wide their bins are: taken to be 0.05 s"):
        told = wiener().fit(arrays.X, arrays.y)
    assert told.bin_s_ == 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert wiener(bin_s=0.02).fit(arrays.X, arrays.y).bin_s_ == 0.02


def test_days_behind_one_another_are_one_session_and_a_list_of_them_two(monday):
    other = day(1).assign(counts=day(1)["counts"] * 3)
    both = ba.concat([monday, other])
    each = [monday, other]
    apart, joined = wiener().fit(each, "velocity"), wiener().fit(both, "velocity")
    assert not np.allclose(apart.coef_, joined.coef_)
    for means in (apart.running_mean_, joined.running_mean_):
        assert means.shape == (6,)
    last = np.sqrt(other["counts"].values.astype(float)[other["valid"].values]).mean(axis=0)
    np.testing.assert_allclose(apart.running_mean_, last)
    all_bins = np.sqrt(both["counts"].values.astype(float)[both["valid"].values]).mean(axis=0)
    np.testing.assert_allclose(joined.running_mean_, all_bins)


def test_sessions_without_an_id_are_told_apart():
    first, second = day(0, session_id="", names=None), day(1, session_id="", names=None)
    assert first.attrs["session_id"] != second.attrs["session_id"]
    assert first.attrs["session_id"] == day(0, session_id="", names=None).attrs["session_id"]
    with pytest.raises(ba.InputError, match="columns without names"):
        wiener().fit(first, "velocity").score(second)
    with pytest.raises(ba.InputError, match="is of subject B, the decoder was trained on A"):
        wiener().fit([day(0, subject="A", session_id="x"), day(1, subject="B", session_id="x")], "velocity")


def test_a_session_with_one_of_two_targets_is_scored_on_it(monday):
    decoder = wiener().fit(monday, ["velocity", "position"])
    lacking = day(1).drop_vars(["position", "position_valid"])
    assert decoder.score(lacking) == wiener().fit(monday, "velocity").score(day(1))
    found = ba.evaluate(decoder, lacking, stream_s=10.0)
    assert set(found.scores["variable"]) == {"velocity"}


def test_sessions_matched_by_position_are_still_ordered_by_name():
    first, second = ba.match([day(seed, names=None) for seed in (0, 1)], by="position")
    decoder = wiener().fit(first, "velocity")
    assert decoder.score(second.isel(channel=[3, 1, 5, 0, 2, 4])) == decoder.score(second)


def unlabelled(session):
    return session.assign_coords(velocity_valid=session["velocity_valid"] & False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: wiener().fit(s, 3), "a list of different names, got int"),
        (lambda s: wiener().fit(s, ["velocity", "velocity"]), "a list of different names"),
        (lambda s: wiener().fit([], "velocity"), "at least one session"),
        (lambda s: wiener().fit([s["counts"], s["counts"]], s["velocity"]), "got 1 for 2"),
        (lambda s: wiener().fit(s, "velocity").extend(s), "the list of all sessions so far"),
        (lambda s: wiener(missing="zro").fit(s, "velocity"), "did you mean 'zero'"),
        (
            lambda s: ba.evaluate(wiener().fit(s, "velocity"), [s, s]),
            "evaluate: expected one session, .* got a list of 2",
        ),
        (lambda s: wiener().fit(s, "velocity").predict([s, s]), "expected one session, got a list of 2"),
        (lambda s: wiener().fit(s, "velocity").adapt([s, s]), "expected one session, got a list of 2"),
        (
            lambda s: wiener().fit(s, "velocity").score((s["counts"], s["counts"])),
            "expected one session, got a list of 2",
        ),
        (
            lambda s: wiener(bin_s=BIN_S).fit(np.ones((9, 6)), np.arange(9)).predict([np.ones((9, 6))] * 3),
            "a list of 3",
        ),
        (lambda s: wiener().fit([s, unlabelled(day(1))], "velocity"), "finite labels to train on, got none in day1"),
        (
            lambda s: wiener(bin_s=BIN_S).fit([np.ones((9, 6))] * 2, [np.arange(9), np.full(9, np.nan)]),
            "finite labels to train on, got none in session 2 of 2",
        ),
        (
            lambda s: wiener(bin_s=BIN_S).fit(np.ma.masked_less(np.ones((9, 6)), 1), np.arange(9)),
            "X: .* a masked array",
        ),
        (
            lambda s: wiener(bin_s=BIN_S).fit(np.ones((9, 6)), np.ma.masked_equal(np.arange(9), 3)),
            "y: .* a masked array",
        ),
        (lambda s: day(counts=np.ma.masked_equal(s["counts"].values, 3)), "counts is a masked array"),
        (lambda s: wiener(bin_s=BIN_S).fit(np.ones((9, 6)), np.arange(9), np.full(9, 0.5)), "true/false, got float64"),
        (
            lambda s: wiener().fit(s, "velocity").save("/tmp"),
            "/tmp: expected the file that the decoder goes to, got a folder",
        ),
        (lambda s: wiener().fit(s, "velocity").save("/proc/none.npz"), "/proc/none.npz: cannot be written"),
        (lambda s: ba.RLSDecoder().fit(s, "velocity").set_params(bin_s="a").predict(s), "bin_s: expected seconds"),
        (
            lambda s: ba.RLSDecoder().fit(s, "velocity").set_params(label_delay_s=None).adapt(s),
            "label_delay_s: expected",
        ),
        (lambda s: wiener().fit(s, "velocity").set_params(n_lags="a").predict(s), "n_lags: expected a whole number"),
        (
            lambda s: ba.RLSDecoder(bin_s="a").fit(s, "velocity"),
            "bin_s: expected seconds, more than 0, or None, got 'a'",
        ),
        (
            lambda s: ba.OnlineDecoder(seed=None).fit(s, "velocity"),
            "seed: expected a whole number, 0 or more, got None",
        ),
        (lambda s: ba.evaluate(wiener().fit(s, "velocity"), s, stream_s="10"), "stream_s: expected seconds.* got '10'"),
        (
            lambda s: ba.evaluate(wiener().fit(s, "velocity"), s, stream_s=np.inf),
            "stream_s: expected seconds.* got inf",
        ),
        (lambda s: ba.split(s, "10"), "stream_s must be positive and min_held_out_s not negative, got '10', 0.0"),
        (lambda s: day(bin_s="a"), "bin_s must be a positive number of seconds, got a"),
        (lambda s: wiener().fit(s, "velocity").matched([s, s]), "expected one session, got a list of 2"),
        (
            lambda s: wiener().fit(s, "velocity").matched(s["counts"].values),
            "a session or a DataArray of counts, got ndar",
        ),
        (lambda s: wiener().fit(s, "velocity").predict("day.nc"), "a file is read first"),
        (lambda s: ba.OnlineDecoder(rule="nope").fit(s, "velocity"), "unknown rule 'nope'"),
        (lambda s: ba.OnlineDecoder(rule="nonsense", n_updates=1).fit(s, "velocity"), "nonsense"),
        (lambda s: ba.OnlineDecoder(rule_constants={"stpes": 3}, n_updates=1).fit(s, "velocity"), "stpes"),
        (lambda s: ba.OnlineDecoder(label_delay_s=-1.0, n_updates=1).fit(s, "velocity"), "0 or more"),
    ],
)
def test_mistakes_are_found_before_the_training(call, message, monday):
    with pytest.raises(ba.InputError, match=message):
        call(monday)
