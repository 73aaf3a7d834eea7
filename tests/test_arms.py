"""The list of arms: complete, in words, made of parameters that exist, and left out or tuned one by one."""

import pytest

from bci_adapt.decoders.base import decoder_class
from bci_adapt.errors import InputError
from bci_adapt.experiment.arm import HELD_OUT, described
from bci_adapt.experiment.arms import arms_of, linear_arms, network_arms, standing_names
from bci_adapt.experiment.asked import CONFIGURED, OF_THE_RUN, ArmSection, DecoderSection
from bci_adapt.experiment.building import Builder
from bci_adapt.experiment.config import parse_config
from bci_adapt.experiment.pairs import Pair
from bci_adapt.experiment.tuned import Tuned
from bci_adapt.results.table import long_table

N_AXES = {"velocity": 2, "position": 2, "emg": 7}
IMMEDIATE = {"rule": "immediate", "optimizer": "rmsprop"}
ASKED = [
    IMMEDIATE,
    IMMEDIATE | {"average": 0.999, "learning_rate": 2e-4},
    IMMEDIATE | {"optimizer": "sgd", "seeds": [1]},
    IMMEDIATE | {"normaliser": "fixed", "cells": ["gru"]},
    *({"rule": rule, "optimizer": "adam", "cells": ["tanh"]} for rule in ("window", "trace", "snap1", "rflo", "uoro")),
]


def config(arms=(), **more):
    base = {"name": "x", "source": {"kind": "folder"}, "pairs": [{"source": "a", "targets": ["b"]}], "seeds": [0, 1]}
    network = {"cells": ["tanh", "gru"], "n_hidden": 3}
    return parse_config(base | {"network": network, "arms": list(arms)} | more, "test")


def listed(made):
    return arms_of(made, N_AXES)


STANDING = standing_names(config())


def test_every_standing_arm_is_run_and_has_words():
    arms = listed(config())
    names = [(arm.name, arm.cell) for arm in arms]
    assert {name for name, _ in names} == set(STANDING)
    assert len(set(names)) == len(names)
    for arm in arms:
        assert arm.words or arm.name in ("frozen", "persistence")
    table = long_table(described(arms), "arms")
    assert len(table) == len(arms)
    assert set(table["frozen"]) | set(table["unlabelled"]) | set(table["ceiling"]) <= set(STANDING)


def test_only_what_is_trained_on_the_stream_is_scored_held_out_alone():
    for arm in listed(config(ASKED)):
        assert (arm.phases == HELD_OUT) == arm.retrained
        assert (arm.trained_on != "source") == (arm.role == "ceiling"), arm.name
        assert arm.retrained == (arm.role == "ceiling" or arm.name == "fine_tuned"), arm.name
        assert arm.checked <= arm.learns, "a canary of an arm that learns nothing says nothing"
        assert ("continuing" in arm.phases) <= arm.learns


@pytest.mark.parametrize("name", STANDING)
def test_one_arm_can_be_left_out(name):
    everything = listed(config(ASKED))
    rest = listed(config(ASKED, controls={"without": [name]}))
    assert rest == [arm for arm in everything if arm.name != name]
    assert len(rest) < len(everything)


def test_an_arm_that_does_not_stand_cannot_be_left_out():
    with pytest.raises(InputError, match=r"controls.without: unknown standing arm 'pseud'; did you mean 'pseudo'"):
        config(controls={"without": ["pseud"]})


@pytest.mark.parametrize(
    ("variables", "has_kalman"),
    [(["velocity"], True), (["position", "velocity"], True), (["emg"], False), (["velocity", "emg"], False)],
)
def test_a_kalman_filter_needs_a_state_for_what_is_decoded(variables, has_kalman):
    arms = [arm for arm in linear_arms(config(variables=variables), N_AXES) if arm.decoder == "kalman"]
    assert bool(arms) == has_kalman
    expected = [name for name in variables for _ in range(N_AXES[name])]
    assert all(arm.fit["outputs"] == expected for arm in arms)


def test_parameters_exist_and_can_be_set():
    for arm in listed(config(ASKED)):
        trained = decoder_class(arm.trained_as or arm.decoder)(**arm.fit, **({"seed": 1} if arm.cell else {}))
        if arm.trained_as:
            assert set(arm.adapt) <= set(decoder_class(arm.decoder)._get_param_names()), arm.name
        else:
            trained.set_params(**arm.adapt)
            assert all(trained.get_params()[name] == value for name, value in arm.adapt.items())
        if arm.cell and arm.decoder == "online_rnn":
            assert trained.get_params()["rule"] == arm.adapt["rule"]


def test_tuned_values_go_where_they_belong():
    n_grids = 0
    for arm in listed(config(ASKED)):
        assert all(factor > 1 for factor in arm.grid.values())
        values = {name: arm.value(name) * 3 for name in arm.grid}
        changed = arm.having(values | {"no_such_thing": 5})
        n_grids += bool(values)
        assert all(changed.value(name) == value for name, value in values.items())
        for was, now in ((arm.fit, changed.fit), (arm.adapt, changed.adapt)):
            assert was.keys() == now.keys()
            kept = values.keys() | ({"group_rates"} if "readout_ratio" in values else set())
            assert all(now[name] == value for name, value in was.items() if name not in kept)
        assert arm.having({}) == arm
        rate = {"learning_rate": values.get("learning_rate"), "tune_rate": values.get("tune_rate")}
        shown = next((value for value in rate.values() if value), arm.columns.get("rate"))
        if "memory_s" in values:
            shown = 1.0 / values["memory_s"]
        assert changed.columns.get("rate") == shown, arm.name
        assert arm.decoder == "persistence" or arm.grid or not arm.learns, f"{arm.name} learns and is never tuned"
    assert n_grids > 20


def test_an_arm_that_is_asked_for_runs_as_asked():
    made = config(ASKED, learning_rate=5e-4)
    arms = {(arm.name, arm.cell): arm for arm in listed(made)}
    assert arms["immediate_rmsprop", "gru"].adapt["learning_rate"] == 5e-4
    averaged = arms["immediate_rmsprop_ema", "tanh"]
    assert (averaged.adapt["learning_rate"], averaged.adapt["average"]) == (2e-4, 0.999)
    assert averaged.columns["average"] == "ema 0.999"
    assert list(arms["immediate_sgd", "tanh"].seeds) == [1]
    assert list(arms["immediate_rmsprop", "tanh"].seeds) == [0, 1]
    assert ("immediate_rmsprop_fixed", "tanh") not in arms
    assert arms["immediate_rmsprop_fixed", "gru"].adapt["normaliser_s"] is None
    assert "normaliser_s" not in arms["immediate_rmsprop", "gru"].adapt
    assert ("snap1_adam", "gru") not in arms
    assert ("snap1_adam", "tanh") in arms
    for section in ASKED:
        assert any(name == ArmSection(**section).name for name, _ in arms)
    # A standing arm that is asked for has what it was asked for with, and is there once.
    own = listed(config([{"rule": "readout", "optimizer": "rmsprop", "learning_rate": 0.02}]))
    assert [arm.adapt["learning_rate"] for arm in own if arm.name == "readout"] == [0.02, 0.02]


def test_what_the_weight_groups_and_labels_of_standing_arms_are():
    arms = {arm.name: arm for arm in network_arms(config(ASKED), "gru")}
    assert arms["output_bias"].adapt["learns"] == ["output_bias"]
    assert arms["recurrent"].adapt["learns"] == ["input", "bias", "recurrent"]
    assert arms["immediate_rmsprop"].adapt["learns"] is None
    assert arms["from_random"].adapt["pretrained"] is False
    assert {name for name, arm in arms.items() if "pretrained" in arm.adapt or "pretrained" in arm.fit} == {
        "from_random"
    }
    taught = {name: arm.supervision for name, arm in arms.items()}
    assert (taught["intention"], taught["pseudo"], taught["normaliser"]) == ("intention", "pseudo", "none")
    assert arms["fine_tuned"].trained_as == "online_rnn"


@pytest.mark.parametrize(
    ("variables", "has_targets", "expected"),
    [(["velocity"], True, True), (["velocity"], False, False), (["position"], True, False)],
)
def test_intention_needs_a_velocity_and_targets(variables, has_targets, expected):
    about = {"n_axes": N_AXES, "has_targets": has_targets}
    arms = Builder(config(variables=variables), {}, {"b": about}, {}).arms(Pair(("a",), "b"))
    assert ("intention" in {arm.name for arm in arms}) == expected


def test_an_arm_of_a_pair_never_has_values_that_were_chosen_on_its_target():
    def point(target, rate, score):
        parameters = {"learning_rate": rate}
        where = {"source": "s", "target": target, "seed": 0, "score": score}
        return {"method": "immediate_rmsprop", "cell": "tanh", "parameters": parameters, **where}

    surface = [point("b", 1e-3, 0.9), point("b", 1e-2, 0.0), point("c", 1e-3, 0.1), point("c", 1e-2, 0.2)]
    about = {"n_axes": N_AXES, "has_targets": True}
    tuned = Tuned("f", "d", {}, tuple(surface))
    builder = Builder(config([IMMEDIATE]), {}, {"b": about, "c": about, "d": about}, {}, tuned)
    rates = {
        target: next(
            arm.adapt["learning_rate"]
            for arm in builder.arms(Pair(("a",), target))
            if (arm.name, arm.cell) == ("immediate_rmsprop", "tanh")
        )
        for target in "bcd"
    }
    assert rates == {"b": 1e-2, "c": 1e-3, "d": 1e-3}
    halved = [arm for arm in builder.arms(Pair(("a",), "d"), day="b") if arm.name == "immediate_rmsprop"]
    assert halved[0].adapt["learning_rate"] == 1e-2, "a part of a day is that day"
    plain = [arm for arm in builder.arms(Pair(("a",), "b"), tuned=False) if arm.name == "immediate_rmsprop"]
    assert {arm.adapt["learning_rate"] for arm in plain} == {1e-4}
    gru = next(arm for arm in builder.arms(Pair(("a",), "b")) if (arm.name, arm.cell) == ("immediate_rmsprop", "gru"))
    assert gru.adapt["learning_rate"] == 1e-4, "nothing was chosen for it"


def test_an_arm_is_what_its_parts_say_however_it_is_asked_for():
    window = IMMEDIATE | {"rule": "window"}
    spelled = {"steps": 4, "beta2": ArmSection(**window).optimizer_type().beta2}
    spelled |= {"learning_rate": 5e-4, "cells": ["gru", "tanh"], "seeds": [1, 0]}
    assert config([window, window | spelled], learning_rate=5e-4).arms == config([window], learning_rate=5e-4).arms
    full = listed(config([window | {"steps": 4, "beta2": spelled["beta2"]}]))
    assert full == listed(config([window])), "a constant that is spelled at its default makes no other job"
    assert len(config([IMMEDIATE, IMMEDIATE | {"fresh_error": False}, IMMEDIATE | {"fresh_error": True}]).arms) == 2
    some = {"learns": ["recurrent", "bias"]}
    assert len(config([window | some, window | {"learns": some["learns"][::-1]}, window]).arms) == 2
    averaged = window | {"average": 0.9}
    for other in ({"learning_rate": 2e-4}, {"seeds": [1]}, {"cells": ["gru"]}):
        with pytest.raises(InputError, match="two arms are 'window4_rmsprop'"):
            config([window, window | other])
    with pytest.raises(InputError, match="two arms are 'window4_rmsprop_ema'"):
        config([averaged, window | {"average": 0.99}])
    close = config([IMMEDIATE | {"rule": "trace", "decay": decay} for decay in (0.5, 0.50000001)])
    assert [arm.name for arm in close.arms] == ["trace(0.5)_rmsprop", "trace(0.50000001)_rmsprop"]
    at_default = ArmSection(**IMMEDIATE, beta2=ArmSection(**IMMEDIATE).optimizer_type().beta2)
    assert at_default.name == ArmSection(**IMMEDIATE).name
    turned = ArmSection(**IMMEDIATE, learns=("recurrent", "input", "bias"))
    assert turned.name == "recurrent", "the order of the weight groups says nothing"
    names = [ArmSection(**section).name for section in ASKED]
    assert len(set(names)) == len(ASKED)
    assert names[:4] == ["immediate_rmsprop", "immediate_rmsprop_ema", "immediate_sgd", "immediate_rmsprop_fixed"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"rule": "trace", "decay": 0}, {"rule": "trace", "decay": 0.0}),
        ({"clip": 1000000}, {"clip": 1e6}),
        ({}, {"learns": ["input", "recurrent", "bias", "readout", "output_bias"]}),
        ({"rule": "readout"}, {"rule": "readout", "learns": ["output_bias", "readout"]}),
    ],
)
def test_one_arm_in_two_spellings_is_one_arm(first, second):
    both = listed(config([IMMEDIATE | first, IMMEDIATE | second]))
    assert both == listed(config([IMMEDIATE | first])) == listed(config([IMMEDIATE | second]))


def test_what_is_not_the_same_stays_two_arms():
    assert len(config([IMMEDIATE, IMMEDIATE | {"take_turns": True}]).arms) == 2
    assert len(config([IMMEDIATE, IMMEDIATE | {"learns": ["input", "recurrent", "bias", "readout"]}]).arms) == 2
    close = [IMMEDIATE | {"beta2": beta2} for beta2 in (0.9990001, 0.9990002)]
    assert [arm.name for arm in config(close).arms] == [
        "immediate_rmsprop(beta2=0.9990001)",
        "immediate_rmsprop(beta2=0.9990002)",
    ]


@pytest.mark.parametrize(
    "asked",
    [
        {"decoder": "wiener", "trained_on": "stream"},
        {"decoder": "wiener", "trained_on": "both"},
        {"decoder": "online_rnn"},
        {"decoder": "aligned", "supervision": "none"},
    ],
)
def test_a_standing_arm_by_another_name_is_that_arm(asked):
    assert listed(config([IMMEDIATE, asked])) == listed(config([IMMEDIATE]))


def test_the_colour_of_an_arm_is_its_own_whatever_others_there_are():
    few, many = (
        {each["arm"]: (each["colour"], each["marker"]) for each in described(listed(config(asked)))}
        for asked in ([], [*ASKED, IMMEDIATE | {"optimizer": "adam"}, {"decoder": "stacked"}])
    )
    assert {name: many[name] for name in few} == few
    shown = {name: style for name, style in many.items() if name not in ("oracle", "ridge_oracle", "persistence")}
    assert len(set(shown.values())) == len(shown), "no two arms look alike"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"fresh_error": True}, "immediate + RMSprop, today's error"),
        ({"fresh_error": False}, "immediate + RMSprop"),
        ({"rule": "window", "steps": 1}, "1 step of history + RMSprop"),
        ({"rule": "window", "steps": 2}, "2 steps of history + RMSprop"),
        ({"rule": "trace", "decay": 0.5}, "trace 0.5 + RMSprop"),
        ({"rule": "snap1"}, "SnAp-1 + RMSprop"),
        (
            {"rule": "window", "average": 0.9, "take_turns": True, "learn_every": 2},
            "4 steps of history + RMSprop + EMA, in turns, every second label",
        ),
        ({"normaliser": "fixed"}, "immediate + RMSprop, fixed normaliser"),
        ({"rule": "readout"}, "readout only"),
        ({"optimizer": "adam", "beta2": 0.9}, "immediate + Adam(beta2=0.9)"),
    ],
)
def test_words_follow_from_parts(keys, words):
    assert ArmSection(**IMMEDIATE | keys).words == words


def test_any_decoder_can_be_an_arm():
    asked = [{"decoder": "stacked", "rule": "window", "prior": "mean", "cells": ["gru"]}]
    asked += [{"decoder": "wiener", "n_lags": 3, "trained_on": "stream"}, {"decoder": "kalman", "state": "position"}]
    arms = {(arm.name, arm.cell): arm for arm in listed(config(asked, learning_rate=5e-4))}
    stacked = arms["stacked(prior=mean, rule=window)", "gru"]
    assert ("stacked(prior=mean, rule=window)", "tanh") not in arms
    assert (stacked.fit["prior"], stacked.fit["n_lags"], stacked.fit["n_hidden"]) == ("mean", 10, 3)
    assert (stacked.adapt["rule"], stacked.adapt["learning_rate"]) == ("window", 5e-4)
    made = decoder_class("stacked")(**stacked.fit, seed=1).set_params(**stacked.adapt)
    assert (made.rule, made.prior) == ("window", "mean")
    assert stacked.checked
    retrained = arms["wiener(n_lags=3)_stream", ""]
    assert (retrained.phases, retrained.role, retrained.fit["n_lags"]) == (HELD_OUT, "ceiling", 3)
    assert arms["kalman(state=position)", ""].fit["outputs"] == ["velocity", "velocity"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"decoder": "stakced"}, "unknown decoder 'stakced'; did you mean 'stacked'"),
        ({"decoder": "stacked", "prior_ss": 3.0}, "unknown key 'prior_ss'; did you mean 'prior_s'"),
        ({"decoder": "stacked", "prior_s": "long"}, "prior_s takes float, got 'long'"),
        ({"decoder": "rls", "bin_s": 0.1}, "bin_s is the run's"),
        ({"decoder": "rls", "cells": ["gru"]}, "the decoder rls has no network"),
    ],
)
def test_a_decoder_that_cannot_be_an_arm_is_refused(section, message):
    with pytest.raises(InputError, match=message):
        listed(config([section]))


def test_a_decoder_that_stands_already_is_one_arm():
    unlabelled = {"decoder": "wiener", "supervision": "none"}
    for asked in ({"decoder": "rls"}, {"decoder": "rls", "n_lags": 10}, {"decoder": "wiener"}, unlabelled):
        assert listed(config([asked])) == listed(config())
    spelled = unlabelled | {"n_lags": 10, "normaliser_s": config().normaliser_s}
    assert listed(config([spelled])) == listed(config())
    assert listed(config([spelled | {"n_lags": 9}])) != listed(config())


def test_a_decoder_that_is_asked_for_twice_is_one_arm():
    stacked = {"decoder": "stacked"}
    default = DecoderSection(**stacked).parameters["prior_s"]
    one = config([stacked])
    spelled = stacked | {"prior_s": default, "seeds": [0, 1], "cells": ["gru", "tanh"]}
    assert config([stacked, stacked, spelled]).arms == one.arms
    assert listed(config([spelled])) == listed(one)
    assert len(config([stacked, stacked | {"prior_s": default * 2}]).arms) == 2
    with pytest.raises(InputError, match="two arms are 'stacked'"):
        config([stacked, stacked | {"seeds": [1]}])


@pytest.mark.parametrize("name", ["stacked", "kalman", "aligned", "rls"])
def test_what_a_config_says_of_a_decoder_is_never_taken_for_its_own_default(name):
    arms = [arm for arm in listed(config([{"decoder": name}])) if arm.decoder == name]
    assert arms
    assert {key for arm in arms if arm.name == name for key in arm.fit} <= {*CONFIGURED, *OF_THE_RUN}
    assert DecoderSection(decoder="aligned", n_lags=DecoderSection(decoder="aligned").parameters["n_lags"]).told
