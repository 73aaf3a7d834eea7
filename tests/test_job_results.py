"""Results of jobs are read as what they should be: a file with the right seal can still be no result of ours."""

import json
from types import SimpleNamespace

import pytest

from bci_adapt.errors import InputError
from bci_adapt.experiment.job_results import Costs, Drift, ScoreRows, Scores, read_json

SCORES = {"rows": [{"metric": "r2", "phase": "held_out", "value": 0.1}], "curves": [], "trajectories": [], "blocks": []}


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (Scores, SCORES, SCORES | {"more": []}, "more: Extra inputs"),
        (Scores, SCORES, {**SCORES, "rows": [1]}, r"rows\.0: Input should be"),
        (ScoreRows, {"rows": SCORES["rows"]}, {"rows": [{"metric": "r2"}]}, r"rows\.0\.phase: Field required"),
        (Drift, {"measures": {"a": {"value": 0.5}, "b": None}, "notes": []}, {"notes": []}, "measures: Field required"),
        (Costs, {"p50_us": 1.5, "machine": "here"}, {"p50_us": []}, "p50_us"),
        (Costs, {"p50_us": None}, [], "should be an object"),
    ],
)
def test_another_file_in_the_place_of_a_result_is_one_error(tmp_path, kind, good, bad, words):
    job = SimpleNamespace(path=tmp_path / "scores.json")
    job.path.write_text(json.dumps(good))
    assert read_json(job, kind) == good
    for text in (json.dumps(bad), json.dumps(good)[:-1], "\x00", "[" * 100_000):
        job.path.write_text(text)
        said = words if text == json.dumps(bad) else "Invalid JSON"
        with pytest.raises(InputError, match=rf"scores\.json: .*{said}.*remove it, and the same command"):
            read_json(job, kind)


def test_numbers_are_read_to_the_last_bit(tmp_path):
    job = SimpleNamespace(path=tmp_path / "scores.json")
    values = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 1 / 3, 123456789.12345679, 3, None]
    job.path.write_text(json.dumps(SCORES | {"rows": [{"value": value} for value in values]}))
    read = [row["value"] for row in read_json(job, Scores)["rows"]]
    assert [repr(each) for each in read] == [repr(each) for each in values]
