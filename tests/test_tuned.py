"""Tuned values: chosen without the day they are used on, told apart from the edge of what was tried, and read back."""

import json

import numpy as np
import pytest

from bci_adapt.errors import InputError
from bci_adapt.experiment.tuned import FORMAT, Tuned, choose, read_tuned, tuned_text

RATES = (1e-4, 1e-3, 1e-2)


def point(rate, score, target="b", source="a", seed=0, method="immediate_rmsprop", cell="gru", **more):
    parameters = {"learning_rate": rate, **more}
    about = {"source": source, "target": target, "seed": seed, "score": score}
    return {"method": method, "cell": cell, "parameters": parameters, **about}


def surface(**scores):
    """Points of one method: for each target its scores at `RATES`."""
    return [
        point(rate, score, target)
        for target, values in scores.items()
        for rate, score in zip(RATES, values, strict=True)
    ]


def tuned(points):
    return Tuned("f.json", "0", {}, tuple(points))


def rate_of(found):
    return None if found is None else found.parameters["learning_rate"]


def test_the_target_that_values_are_for_is_not_looked_at():
    # "own" likes the largest rate so much that it would decide the mean; the others like the middle or the smallest.
    planted = tuned(surface(own=(0.0, 0.0, 9.0), b=(0.3, 0.5, 0.1), c=(0.4, 0.3, 0.1), d=(0.2, 0.4, 0.3)))
    key = ("immediate_rmsprop", "gru")
    assert rate_of(planted.choice(*key)) == 1e-2
    for_own = planted.choice(*key, "own")
    assert rate_of(for_own) == 1e-3
    assert for_own.score == pytest.approx((0.5 + 0.3 + 0.4) / 3)
    assert rate_of(planted.choice(*key, "b")) == 1e-2
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = {target: rng.normal(size=3) for target in ("b", "c", "d")}
        chosen = {rate_of(tuned(surface(own=own, **values)).choice(*key, "own")) for own in rng.normal(0, 9, (5, 3))}
        assert len(chosen) == 1
        assert chosen == {RATES[int(np.argmax(sum(values.values())))]}
    assert planted.choice(*key, "own") == tuned(
        surface(b=(0.3, 0.5, 0.1), c=(0.4, 0.3, 0.1), d=(0.2, 0.4, 0.3))
    ).choice(*key)
    only = tuned(surface(own=(0.1, 0.2, 0.3)))
    assert only.choice(*key, "own") is None
    assert planted.choice("rls", "") is None


def test_days_count_alike_however_many_pairs_and_seeds_they_have():
    many = [point(1e-3, 1.0, "b", source, seed) for source in "aefg" for seed in (0, 1)]
    many += [point(1e-4, 0.0, "b", source, seed) for source in "aefg" for seed in (0, 1)]
    few = [point(1e-3, 0.0, "c"), point(1e-4, 2.0, "c")]
    found = choose(many + few)
    assert (rate_of(found), found.score, found.n_points) == (1e-4, 1.0, 2)


@pytest.mark.parametrize("bad", [None, float("nan"), float("-inf")])
def test_what_failed_anywhere_or_was_not_tried_everywhere_is_not_chosen(bad):
    points = surface(b=(0.3, bad, 0.1), c=(0.3, 0.99, 0.1))
    assert rate_of(choose(points)) == 1e-4
    assert rate_of(choose([*surface(b=(0.3, 0.2, 0.1)), point(1.0, 0.9, "b"), *surface(c=(0.3, 0.2, 0.1))])) == 1e-4
    assert choose([point(rate, bad) for rate in RATES]) is None
    assert choose([]) is None


@pytest.mark.parametrize(
    ("scores", "interior"),
    [((0.1, 0.5, 0.2), True), ((0.5, 0.3, 0.2), False), ((0.1, 0.3, 0.5), False), ((None, 0.5, None), True)],
)
def test_a_value_is_interior_where_smaller_and_larger_ones_were_tried(scores, interior):
    assert choose(surface(b=scores)).interior is interior
    assert choose([point(1e-3, 0.5)]).interior is False


def test_every_parameter_must_be_interior():
    def cross(scores):
        return [point(rate, score, n_lags=lags) for (rate, lags), score in scores.items()]

    line = {(1e-4, 4): 0.1, (1e-3, 4): 0.4, (1e-2, 4): 0.1}
    assert choose(cross(line)).interior is False, "no other number of lags was tried"
    assert choose(cross(line | {(1e-3, 2): 0.2, (1e-3, 8): 0.3})).interior is True
    assert choose(cross(line | {(1e-3, 2): 0.2, (1e-2, 8): 0.3})).interior is True, "larger and smaller, wherever"
    assert choose(cross(line | {(1e-3, 8): 0.2, (1e-2, 8): 0.3})).interior is False, "nothing smaller"
    assert choose(cross(line | {(1e-3, 2): 0.2, (1e-3, 8): 0.9})).interior is False


def test_a_file_is_read_as_it_was_written(tmp_path):
    points = [
        *surface(b=(0.3, 0.5, None), c=(0.4, 0.3, 0.1)),
        point(0.05, 0.7, method="rls", cell="", memory_s=3.5, n_lags=4),
    ]
    path = tmp_path / "x.tuned.json"
    path.write_text(tuned_text({"seeds": [0], "pairs": [["a", "b"]]}, points), encoding="utf-8")
    found = read_tuned(path)
    assert found.surface == tuple(points)
    assert (found.file, found.about) == ("x.tuned.json", {"seeds": [0], "pairs": [["a", "b"]]})
    assert found.methods() == [("immediate_rmsprop", "gru"), ("rls", "")]
    stored = json.loads(path.read_text())
    assert stored["format"] == FORMAT
    chosen = {(each["method"], each["cell"]): each for each in stored["chosen"]}
    assert chosen["immediate_rmsprop", "gru"]["parameters"] == {"learning_rate": 1e-3}
    assert chosen["immediate_rmsprop", "gru"]["interior"] is True
    for key in found.methods():
        choice = found.choice(*key)
        assert chosen[key] == {
            "method": key[0], "cell": key[1], "parameters": choice.parameters, "score": round(choice.score, 4),
            "interior": choice.interior, "n_points": choice.n_points,
        }  # fmt: skip
    assert tuned_text(found.about, found.surface) == path.read_text(), "a diff shows what changed and nothing else"
    assert all(len(line) < 300 for line in path.read_text().splitlines())
    other = tmp_path / "y.tuned.json"
    other.write_text(tuned_text({"seeds": [0], "pairs": [["a", "b"]]}, points[:-1]), encoding="utf-8")
    assert read_tuned(other).digest != found.digest
    empty = tmp_path / "empty.json"
    empty.write_text(tuned_text({}, []), encoding="utf-8")
    assert read_tuned(empty).surface == ()


GOOD = {"format": FORMAT, "about": {}, "surface": [point(1e-3, 0.5)]}


@pytest.mark.parametrize(
    "text",
    [
        "", "not json", "[]", "3", "{}", json.dumps(GOOD | {"format": "bci_adapt tuned values, 9"}),
        json.dumps({"format": FORMAT}), json.dumps(GOOD | {"surface": 3}), json.dumps(GOOD | {"surface": [3]}),
        json.dumps(GOOD | {"surface": [{"method": "rls"}]}), json.dumps(GOOD | {"surface": [point(1e-3, "high")]}),
        json.dumps(GOOD | {"surface": [point(1e-3, 0.5) | {"parameters": [1]}]}),
        json.dumps(GOOD | {"surface": [point("fast", 0.5)]}), json.dumps(GOOD | {"about": [1]}),
    ],
)  # fmt: skip
def test_another_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad.json: expected values written by bci-adapt tune"):
        read_tuned(path)


def test_a_missing_file_says_how_it_is_made(tmp_path):
    with pytest.raises(InputError, match=r"none.json: no such file; make it with bci-adapt tune"):
        read_tuned(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary.json: expected values"):
        read_tuned(tmp_path / "binary.json")


def test_a_file_that_is_not_as_it_was_written_is_refused(tmp_path):
    path = tmp_path / "x.tuned.json"
    text = tuned_text({"seeds": [0]}, surface(b=(0.3, 0.5, 0.1), c=(0.4, 0.3, 0.1)))
    for old, new in (("0.5", "0.4"), ('"seeds": [0]', '"seeds": [1]'), ('"score": 0.4', '"score": 0.3')):
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(InputError, match=r"x\.tuned\.json: was damaged or changed since bci-adapt tune wrote it"):
            read_tuned(path)
    body = text.rpartition(',\n"content"')[0]
    path.write_text(body.replace("values, 2", "values, 1") + "}\n", encoding="utf-8")  # as the first version wrote it
    assert len(read_tuned(path).surface) == 6
    path.write_text(body + "}\n", encoding="utf-8")
    with pytest.raises(InputError, match="content"):
        read_tuned(path)
