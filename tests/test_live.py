"""The live decoder: what `adapt` does, bit for bit, from labels and bins that come as they come."""

import json

import numpy as np
import pytest
from test_decoders import SMALL, arrays_of, copy_of, recording, same, smooth_movement

import bci_adapt as ba
from bci_adapt.errors import InputError
from bci_adapt.learning.normaliser import Normaliser
from bci_adapt.live.drivers.compiled import small
from bci_adapt.live.log import Event, replay

DELAY = 4  # bins, of SMALL
KINDS = {
    "network": lambda: ba.OnlineDecoder(**SMALL),
    "turns": lambda: ba.OnlineDecoder(**SMALL, rule="window", n_members=2, take_turns=True, learn_every=2),
    "linear": lambda: ba.RLSDecoder(n_lags=3, memory_s=20.0, label_delay_s=0.2, update_every_s=0.25, bin_s=0.05),
    "stacked": lambda: ba.StackedDecoder(n_lags=3, memory_s=50.0, update_every_s=0.25, prior_s=5.0, **SMALL),
    "fixed": lambda: ba.WienerDecoder(n_lags=3, bin_s=0.05),
}


@pytest.fixture(scope="module")
def fitted():
    return {name: make().fit(*recording()) for name, make in KINDS.items()}


def stamps(n, reset=None, start_s=100.0):
    """Times of bins of .05 s, with a gap where a segment begins."""
    gaps = np.zeros(n) if reset is None else np.cumsum(reset) * 7.0
    return start_s + 0.05 * np.arange(n) + gaps


def orders(n, seed=0):
    """When labels come, by how many bins after their own: in bursts, out of order, none later than is waited for."""
    rng = np.random.default_rng(seed)
    own = np.arange(n)
    return {
        "with the bin": own + DELAY,
        "after the bin": own + DELAY + 1,
        "at once": own + 1,
        "shuffled": own + rng.integers(1, DELAY + 2, n),
        "bursts": np.minimum((own // 3 + 1) * 3 + 1, own + DELAY + 1),
    }


def led(live, X, y, times, comes, bins=None):
    """Predictions of `bins`; label i is handed over before bin ``comes[i]`` is, in any order among those of a bin."""
    out = []
    for t in range(len(X)) if bins is None else bins:
        for i in np.random.default_rng(t).permutation(np.flatnonzero(comes == t)):
            live.learn(y[i], times[i])
        out.append(live.predict(X[t], times[t]))
    return np.array(out)


class TestEqualsAdapt:
    @pytest.mark.parametrize("order", orders(1))
    @pytest.mark.parametrize("name", KINDS)
    def test_however_labels_come(self, fitted, name, order, tmp_path):
        X, y, reset = recording(seed=1)
        whole = copy_of(fitted[name], tmp_path)
        expected = whole.adapt(X, y, reset)
        live, n = ba.live(fitted[name]), len(X)
        # A bin without neurons behind them, before which the labels that the last one waits for come.
        X, y, reset = np.vstack([X, np.full((1, X.shape[1]), np.nan)]), np.vstack([y, y[-1:]]), np.append(reset, False)
        found = led(live, X, y, stamps(n + 1, reset), orders(n + 1)[order])[:n]
        own, theirs = arrays_of(live.decoder), arrays_of(whole)
        if name in ("network", "turns"):
            assert np.array_equal(found, expected)
            keys = [key for key in theirs if not key.startswith(("state_ring", "state_counters"))]
        else:  # products of matrices round differently bin by bin; what is learned from counts alone does not
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
            keys = [key for key in theirs if key in ("coef_", "P_", "linear_coef_", "linear_P_", "state_W")]
        assert [key for key in keys if not np.array_equal(own[key], theirs[key], equal_nan=True)] == []
        assert live.state["bins"] == live.bins | {"bins": n + 1, "segments": 2, "unobserved": 11}
        assert "state_W" not in arrays_of(fitted[name])  # the one it was made from stands where it did

    @pytest.mark.parametrize("name", ["network", "turns", "linear", "stacked"])
    def test_labels_that_come_later_than_the_delay_and_never(self, fitted, name, tmp_path):
        """What is waited for longer is learned from in the order of the bins, as `adapt` does with `arrives`."""
        X, y, _ = recording(seed=2, gap=False)
        n, wait, own = len(X), 12, np.arange(len(X))
        comes = own + np.random.default_rng(1).integers(1, wait + 2, n)
        never = np.random.default_rng(2).random(n) < 0.1
        told = never & (own % 2 == 0)
        y[never] = np.nan
        arrives = np.where(never & ~told, own + wait, np.maximum(comes - 1, own + DELAY))
        whole = copy_of(fitted[name], tmp_path)
        expected = whole.adapt(X, y, None, np.maximum.accumulate(arrives))
        found = led(ba.live(fitted[name], wait_s=0.6), X, y, stamps(n), np.where(never & ~told, 10 * n, comes))
        if name in ("network", "turns"):
            assert np.array_equal(found, expected)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
        assert np.abs(found - fitted[name].adapt(X, y)).max() > 1e-4 if name != "linear" else True


def test_what_becomes_of_labels(fitted):
    X, y, _ = recording(seed=1, gap=False)
    live = ba.live(fitted["network"])
    assert live.learn(y[0], 0.0) == "ahead"
    X[5] = np.nan
    for t in range(20):
        live.predict(X[t], 100.0 + 0.05 * t)
    before = arrays_of(live.decoder)
    assert [live.learn(y[0], 100.0 + at) for at in (5.0, 0.2, -7.0, np.nan)] == ["ahead", "gone", "gone", "no time"]
    assert [live.learn(y[0], 100.0 + 0.05 * t) for t in (19, 15, 14)] == ["used", "used", "gone"]
    assert live.learn(y[0], 100.0 + 0.05 * 19 + 0.02) == "duplicate"
    assert live.learn([np.nan, np.nan], 100.0 + 0.05 * 18) == "missing"
    assert live.learn([np.inf, 1.0], 100.0 + 0.05 * 17) == "used"
    live.pause()
    assert live.learn(y[0], 100.0 + 0.05 * 16) == "held"
    told = {"used": 3, "gone": 3, "ahead": 2, "no time": 1, "duplicate": 1, "missing": 1, "held": 1}
    assert live.labels == dict.fromkeys(live.labels, 0) | told
    after = arrays_of(live.decoder)  # that of bin 15 alone was as old as the delay
    assert int(after["state_counters"][0, 4]) == int(before["state_counters"][0, 4]) + 1
    live.resume()
    live.predict(X[20], 110.0)  # a gap: what was before it is gone
    assert live.learn(y[19], 100.0 + 0.05 * 19) == "gone"
    late = ba.live(fitted["network"])
    for t in range(5):
        late.predict(X[t + 1], 0.05 * t)
    assert late.learn(y[4], 0.05 * 4) == "not observed"
    for label in (y[0, :1], y[:2], "one", None):
        with pytest.raises(InputError, match="label: expected"):
            late.learn(label, 0.0)


class Faults:
    """A stream whose clock and bins fail at random, and what is left of it: the bins that count, with resets."""

    def __init__(self, seed, n):
        rng = np.random.default_rng(seed)
        self.fed, self.kept, self.reset, self.times = [], [], [], []  # (bin, stamp); bins that count
        shift, gap, t = 0.0, True, 0
        while t < n:
            stamp = 1e5 + 0.05 * t + shift
            kind = rng.choice(
                ["missing", "repeated", "early", "no time", "ahead", "back", "fine"], p=[0.02] * 6 + [0.88]
            )
            if gap and kind in ("missing", "ahead", "back"):  # one of them at a time: two might cancel out
                kind = "fine"
            if kind == "missing":
                t, gap = t + rng.integers(1, 9), True
                continue
            if kind == "ahead":
                shift, gap = shift + rng.choice([20.0, 200_000.0]), True
                continue
            if kind == "back" and n - t > 60:
                # The clock is set back: refused for a second, then what follows is as after a gap.
                shift -= rng.choice([20.0, 200_000.0])
                self.fed += [(t + k, 1e5 + 0.05 * (t + k) + shift) for k in range(20)]
                t, gap, kind = t + 20, True, "fine"
                stamp = 1e5 + 0.05 * t + shift
            self.fed.append((t, stamp + rng.uniform(-0.01, 0.01)))
            self.kept.append(t)
            self.times.append(self.fed[-1][1])
            self.reset.append(gap)
            gap = False
            wrong = {"repeated": stamp, "early": stamp - 0.05 * rng.integers(1, 300), "no time": np.nan}
            if kind in wrong:
                self.fed.append((int(rng.integers(n)), wrong[kind]))
            t += 1


@pytest.mark.parametrize("seed", range(8))
def test_faults_of_clock_and_labels_move_no_weight(fitted, seed, tmp_path):
    """Whatever is wrong, weights are those that `adapt` learns from the bins that count, a reset at each gap."""
    X, y, _ = recording(seed=3, gap=False)
    faults = Faults(seed, len(X))
    rng, live = np.random.default_rng([seed, 1]), ba.live(fitted["network"])
    out = []
    for t, stamp in faults.fed:
        before = live.bins["bins"]
        shown = live.predict(X[t], stamp)
        if live.bins["bins"] > before:
            out.append(shown)
            k = len(out) - 1
            for i in (k - int(rng.integers(0, DELAY)), k - DELAY):
                if i >= 0:
                    live.learn(y[faults.kept[i]], faults.times[i])
        for _ in range(rng.integers(0, 2)):  # labels of no bin, of bins that are gone, twice the same
            live.learn(rng.standard_normal(2) * 1e6, stamp + rng.choice([-1e6, 1e6, -3.0, 20.0, np.nan]))
    kept = np.array(faults.kept)
    whole = copy_of(fitted["network"], tmp_path)
    expected = whole.adapt(X[kept], y[kept], np.array(faults.reset))
    assert np.array_equal(np.array(out), expected)
    live.predict(np.full(X.shape[1], np.nan))  # at the end of a bin what is due is learned
    assert same(arrays_of(live.decoder), arrays_of(whole), but=("state_ring", "state_counters"))
    assert live.bins["segments"] == sum(faults.reset) > 2


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_goes_on_bit_for_bit(fitted, name, tmp_path):
    """In the middle of a burst, with labels that wait, and one that waits past the checkpoint for its bin."""
    X, y, reset = recording(seed=1)
    times, comes, stop = stamps(len(X), reset), orders(len(X))["bursts"], 152
    live = ba.live(fitted[name], wait_s=None if name == "fixed" else 0.4)
    led(live, X, y, times, comes, range(stop))
    live.mark("before")
    live.checkpoint(tmp_path / "live.npz")
    again = ba.live(tmp_path / "live.npz")
    assert again.state == live.state
    one, two = (led(each, X, y, times, comes, range(stop, len(X))) for each in (live, again))
    assert np.array_equal(one, two)
    assert again.state == live.state
    for each in (live, again):
        each.roll_back("before")
        led(each, X, y, times + 50.0, comes, range(200))
    assert same(arrays_of(live.decoder), arrays_of(again.decoder))
    assert ba.load(tmp_path / "live.npz").get_params() == fitted[name].get_params()
    with pytest.raises(InputError, match=r"live\.npz: wait_s: this session was begun with (0.4|None), got 2"):
        ba.live(tmp_path / "live.npz", wait_s=2.0)
    (tmp_path / "live.npz").write_bytes((tmp_path / "live.npz").read_bytes()[:-200])
    with pytest.raises(InputError, match=r"live\.npz"):
        ba.live(tmp_path / "live.npz")


class TestModes:
    def test_pause_holds_weights_freeze_holds_all_and_resume_learns(self, fitted):
        X, y, _ = recording(seed=1, gap=False)
        times, comes = stamps(len(X)), orders(len(X))["shuffled"]
        live, free = ba.live(fitted["network"]), ba.live(fitted["network"])

        def held(names):
            before = arrays_of(live.decoder)
            led(live, X, y, times, comes, range(live.bins["bins"], live.bins["bins"] + 30))
            after = arrays_of(live.decoder)
            return {name: np.array_equal(before[name], after[name]) for name in names}

        names = ("state_W", "state_opt_W", "running_mean", "state_state")
        assert not any(held(names).values())
        live.pause()
        assert (live.mode, held(names)) == ("paused", {**dict.fromkeys(names, True), **dict.fromkeys(names[2:], False)})
        live.freeze()
        assert (live.mode, held(names)) == ("frozen", {**dict.fromkeys(names, True), "state_state": False})
        live.resume()
        assert (live.mode, held(names)) == ("learning", dict.fromkeys(names, False))
        used = live.labels["used"]
        led(free, X, y, times, comes, range(120))
        assert free.labels["used"] > used > 0
        assert live.labels["held"] == pytest.approx(60, abs=5)

    @pytest.mark.parametrize("name", ["network", "turns", "linear", "stacked"])
    def test_a_roll_back_brings_back_the_weights_of_a_moment(self, fitted, name):
        X, y, _ = recording(seed=1, gap=False)
        times, comes = stamps(len(X)), orders(len(X))["with the bin"]
        live, straight = ba.live(fitted[name]), ba.live(fitted[name])
        led(live, X, y, times, comes, range(100))
        live.mark("noon")
        kept = {key: each.copy() for key, each in live._driver.weights().items()}
        led(live, X, y, times, comes, range(100, 200))
        assert not all(np.array_equal(each, kept[key]) for key, each in live._driver.weights().items())
        live.roll_back("noon")
        assert all(np.array_equal(each, kept[key]) for key, each in live._driver.weights().items())
        live.roll_back("start")
        # From the start it is a decoder that has seen the inputs but learned nothing.
        straight.pause()
        led(straight, X, y, times, comes, range(200))
        straight.resume()
        straight._back("start")
        one, two = (led(each, X, y, times, comes, range(200, 400)) for each in (live, straight))
        assert np.array_equal(one, two)
        with pytest.raises(InputError, match="roll_back: expected one of start, good, noon, got lunch"):
            live.roll_back("lunch")

    def test_warm_up_moves_nothing(self, fitted):
        X, y, _ = recording(seed=1, gap=False)
        one, two = ba.live(fitted["network"]), ba.live(fitted["network"])
        two.warm_up()
        assert one.state == two.state
        led(two, X, y, stamps(len(X)), orders(len(X))["bursts"], range(50))
        state = two.state
        two.warm_up()
        assert state == two.state
        led(one, X, y, stamps(len(X)), orders(len(X))["bursts"], range(50))
        assert same(arrays_of(one.decoder), arrays_of(two.decoder))


def test_bins_that_are_none(fitted):
    X, _, _ = recording(seed=1, gap=False)
    live = ba.live(fitted["network"])
    shown = live.predict(X[0])
    for bad in (np.nan, np.inf, -1.0):
        row = X[1].copy()
        row[2] = bad
        assert np.array_equal(live.predict(row), shown)
    assert (live.bins["unobserved"], live.bins["unusable"], live.bins["bins"]) == (1, 2, 4)
    assert np.isfinite(live.predict(X[1] * 0 + 10**6)).all()
    assert live.predict([int(each) for each in X[1]]).shape == (2,)
    for row in (X[0, :3], X[:2], "counts", None, 1.0):
        with pytest.raises(InputError, match="counts: expected"):
            live.predict(row)
    assert live.bins["bins"] == 6


def test_doors(fitted):
    with pytest.raises(InputError, match=r"wait_s: expected at least the decoder's label delay, 0.2 s, got 0.1 s"):
        ba.live(fitted["network"], wait_s=0.1)
    kalman = ba.KalmanDecoder(bin_s=0.05, adaptive=True).fit(*recording())
    with pytest.raises(InputError, match=r"taught label by label \(StackedDecoder, OnlineDecoder, RLSDecoder\)"):
        ba.live(kalman)
    with pytest.raises(InputError, match="fit it"):
        ba.live(ba.OnlineDecoder(**SMALL))


class TestGuards:
    N = 300

    def stream(self, live, broken=None, after=150):
        """Lead `live` through a day, `broken` after so many bins; returns predictions and modes."""
        X, y, _ = recording(self.N, seed=1, gap=False)
        times, out, modes = stamps(self.N), [], []
        for t in range(self.N):
            if t == after and broken is not None:
                broken(live)
            if t >= DELAY:
                live.learn(y[t - DELAY], times[t - DELAY])
            out.append(live.predict(X[t], times[t]))
            modes.append(live.mode)
        return np.array(out), modes

    @pytest.mark.parametrize("name", ["network", "turns", "stacked"])
    def test_a_learning_rate_that_diverges_is_stopped_within_a_second(self, name, tmp_path):
        """1,000 instead of .01: without guards it predicts what no hand can do, and nobody is told."""
        wild = KINDS[name]().set_params(learning_rate=1e3).fit(*recording())
        free, live = ba.live(wild, guards=None), ba.live(wild, log=tmp_path / "log")
        limit = 10.0 * wild.label_scale_
        out, _ = self.stream(free)
        assert np.abs(out - wild.label_mean_).max() > 10 * limit.max()
        out, modes = self.stream(live)
        assert (np.abs(out - wild.label_mean_) <= limit).all()
        assert "stopped" in modes[: DELAY + 1 + 20]
        assert live.stopped_by["guard"] in ("range", "update")
        assert live.labels["used"] < 25 < live.labels["held"]
        start = ba.live(wild)
        assert live.weights_digest == start.weights_digest
        assert json.loads((tmp_path / "log").read_text().splitlines()[2])["what"] == "guard"

    def test_weights_that_were_good_for_long_enough_come_back(self, fitted):
        def wild(live):
            for calls in live._driver._calls.values():
                for call in calls:
                    call[4].now_W[:] = call[4].now_C[:] = 1e3

        live = ba.live(fitted["network"], guards={"good_s": 1.0})
        kept = {}

        def learning(live):
            kept["good"] = {key: each.copy() for key, each in live._moments._kept["good"].items()}
            kept["start"] = live._moments._kept["start"]
            wild(live)

        _, modes = self.stream(live, learning)
        assert modes[149] == "learning"
        assert "stopped" in modes[150:171]
        weights = live._driver.weights()
        assert all(np.array_equal(weights[key], each) for key, each in kept["good"].items())
        assert not np.array_equal(weights["W"], kept["start"]["W"])

    def test_predictions_that_are_far_off_are_an_error(self, fitted):
        def overdone(live):
            live._driver.arrays["mean_C"] *= 15.0

        live = ba.live(fitted["network"], guards={"error_s": 2.0, "range": None})
        self.stream(live, overdone)
        assert (live.mode, live.stopped_by["guard"]) == ("stopped", "error")
        live.resume()
        assert (live.mode, live.stopped_by, live.state["error"]) == ("learning", {}, None)

    def test_a_decoder_that_is_right_is_left_alone(self, fitted):
        for name in KINDS:
            live = ba.live(fitted[name])
            _, modes = self.stream(live)
            assert set(modes) == {"learning"}, (name, live.stopped_by)

    def test_a_canary_sings_where_labels_reach_predictions_otherwise(self):
        """A bias that follows labels at once and needs no neuron; and one whose labels come too late for that."""
        y, counts = smooth_movement(900, 5)
        X = counts(np.random.default_rng(2).standard_normal((2, 5)))
        bias = {"learns": ("output_bias",), "learning_rate": 0.2, "average": None}
        for more, delay_s, sings in ((bias, 0.0, True), (bias, 1.0, False), ({}, 0.2, False)):
            constants = SMALL | {"n_updates": 60, "label_delay_s": delay_s} | more
            decoder = ba.OnlineDecoder(**constants).fit(X[:400], y[:400])
            live = ba.live(decoder, canary=True, guards={"canary_s": 10.0, "error": None, "update": None})
            for t in range(400, len(X)):
                live.predict(X[t], 0.05 * t)
                live.learn(y[t - round(delay_s / 0.05)], 0.05 * t - delay_s)
            assert (live.stopped_by.get("guard") == "canary") == sings, (more, delay_s, live.state)

    def test_doors(self, fitted):
        with pytest.raises(InputError, match="guards: error: expected a number above 0, got -1"):
            ba.live(fitted["network"], guards={"error": -1})
        with pytest.raises(InputError, match=r"guards: .*unexpected.*known: error, error_s"):
            ba.live(fitted["network"], guards={"speed": 1})


class TestLog:
    def events(self, n=200):
        X, y, reset = recording(300, seed=1)
        times = stamps(n, reset[:n])
        for t in range(n):
            if t >= DELAY and t % 7:
                yield Event("label", y[t - DELAY], times[t - DELAY])
            if t % 13 == 0:
                yield Event("label", y[0], times[0] - 50.0)
            yield Event("bin", X[t], times[t])
            if t % 29 == 0:
                yield Event("bin", X[0], times[t] - 3.0)

    def used(self, live, tmp_path, cut=None):
        """A session with things done by hand; of a log that is cut off, what is left."""
        doings = {50: live.pause, 60: live.resume, 90: lambda: live.mark("noon"), 130: live.freeze, 140: live.resume}
        doings |= {170: lambda: live.roll_back("noon"), 180: lambda: live.checkpoint(tmp_path / "on.npz")}
        for number, event in enumerate(self.events()):
            (live.predict if event.kind == "bin" else live.learn)(event.values, event.time_s)
            doings.get(number, lambda: None)()
            if number == cut:
                break

    @pytest.mark.parametrize("name", ["network", "stacked"])
    def test_replays_to_the_same_weights(self, fitted, name, tmp_path):
        live = ba.live(fitted[name], wait_s=0.4, canary=True, log=tmp_path / "log.jsonl")
        self.used(live, tmp_path)
        digest = live.weights_digest
        live.close()
        fitted[name].save(tmp_path / "decoder.npz")
        again = replay(tmp_path / "log.jsonl", tmp_path / "decoder.npz", self.events())
        assert again.weights_digest == digest
        assert again.state == live.state
        entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        told = {"paused", "resumed", "marked", "frozen", "rolled back", "checkpoint", "refused", "label left", "closed"}
        assert told < {entry["what"] for entry in entries}
        on = ba.live(tmp_path / "on.npz", log=tmp_path / "second.jsonl")
        rest = list(self.events())[181:]
        for event in rest:
            (on.predict if event.kind == "bin" else on.learn)(event.values, event.time_s)
        on.close()
        assert on.weights_digest == digest
        assert replay(tmp_path / "second.jsonl", tmp_path / "on.npz", rest).weights_digest == digest

    def test_a_guard_fires_again_at_the_same_bin(self, tmp_path):
        wild = KINDS["network"]().set_params(learning_rate=1e3).fit(*recording())
        live = ba.live(wild, log=tmp_path / "log")
        self.used(live, tmp_path)
        live.close()
        assert replay(tmp_path / "log", wild, self.events()).weights_digest == live.weights_digest
        assert (tmp_path / "log").read_text().count('"guard"') >= 2

    def test_a_log_of_something_else_is_told_at_its_line(self, fitted, tmp_path):
        live = ba.live(fitted["network"], log=tmp_path / "log")
        self.used(live, tmp_path, cut=150)
        lines = (tmp_path / "log").read_text().splitlines(keepends=True)
        # The power failed: what is left is replayed.
        (tmp_path / "cut").write_text("".join(lines)[:-20])
        assert replay(tmp_path / "cut", fitted["network"], self.events()).events <= live.events
        with pytest.raises(InputError, match=r"log: line 1: the log says .*weights.* another decoder"):
            replay(tmp_path / "log", fitted["turns"], self.events())
        with pytest.raises(InputError, match="the stream ends after 20 events"):
            replay(tmp_path / "log", fitted["network"], list(self.events())[:20])
        other = [event._replace(values=event.values * 0.5) for event in self.events()]
        (tmp_path / "less").write_text("".join(line for line in lines if "resumed" not in line))
        with pytest.raises(InputError, match=r"line [0-9]+: "):
            replay(tmp_path / "less", fitted["network"], self.events())
        live.close()
        with pytest.raises(InputError, match="its replay came to"):
            replay(tmp_path / "log", fitted["network"], other)
        with pytest.raises(InputError, match="expected a new file for the log, this is there"):
            ba.live(fitted["network"], log=tmp_path / "log")
        for text, message in (("", "begins with no start"), ("{]\n", "line 1: expected JSON"), ("[1]\n", "line 1: ")):
            (tmp_path / "bad").write_text(text)
            with pytest.raises(InputError, match=message):
                replay(tmp_path / "bad", fitted["network"], [])


@pytest.mark.parametrize("constant", [20.0, np.inf])
@pytest.mark.parametrize("power", [False, True])
def test_the_compiled_normaliser_is_the_normaliser_bit_for_bit(constant, power):
    rng = np.random.default_rng(0)
    X, scale = rng.poisson(3.0, (50, 7)).astype(float), rng.uniform(0.5, 2.0, 7)
    X[[3, 9, 20], [1, 2, 3]] = np.nan, -1.0, np.inf
    observed = np.isfinite(X).all(axis=1) & (X >= 0).all(axis=1)
    plain = np.where(observed[:, None], X, 0.0)
    start = Normaliser.fit(rng.uniform(size=(30, 7)), None, constant)
    expected, after = start.apply(plain / scale if power else np.sqrt(plain), observed)
    mean, variance, out = start.mean.copy(), start.variance.copy(), np.zeros(7)
    alpha = float(-np.expm1(-1.0 / constant))
    for t, row in enumerate(X):
        moves = constant < np.inf
        took = small().enter(row.copy(), not power, scale, mean, variance, alpha, 1.0 - alpha, moves, out)
        assert took == observed[t]
        assert not took or np.array_equal(out, expected[t])
    assert np.array_equal(mean, after.mean)
    assert np.array_equal(variance, after.variance)
