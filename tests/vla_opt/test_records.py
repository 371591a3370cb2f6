"""Episode rows: what is stored is what comes back, and no outcome can be rewritten."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vla_opt.evaluation import EpisodeRecord, append_record, load_records, unique_records


def make_record(init_state: int = 0, outcome: str = "success", **changes: Any) -> EpisodeRecord:
    fields: dict[str, Any] = {
        "suite": "libero_object",
        "task_id": 3,
        "init_state": init_state,
        "seed": 1000 + init_state,
        "outcome": outcome,
        "success": outcome == "success",
        "steps": 120,
        "wall_s": 2.5,
        "cpu_s": 2.25,
        "error": "worker killed (SIGKILL)" if outcome == "error" else None,
    }
    return EpisodeRecord(**{**fields, **changes})


def test_written_records_come_back_equal_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "eval" / "episodes.jsonl"
    records = [
        make_record(0, video="videos/a.mp4", language="pick up the Käse", retries=2, worker=1),
        make_record(1, "failure"),
        make_record(2, "error"),
        make_record(0, trial=1, render_profile="fast"),
    ]
    for record in records:
        append_record(path, record)
    assert load_records(path) == records


def test_missing_file_holds_no_episode(tmp_path: Path) -> None:
    assert load_records(tmp_path / "episodes.jsonl") == []


def test_half_written_last_row_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    append_record(path, make_record(0))
    with open(path, "a") as file:
        file.write(json.dumps(make_record(1).to_dict())[:50])
    assert load_records(path) == [make_record(0, timestamp=load_records(path)[0].timestamp)]


def test_first_scored_outcome_of_an_episode_wins() -> None:
    first, second = make_record(0, "failure"), make_record(0, "success")
    assert unique_records([first, second]) == [first]
    assert unique_records([second, first]) == [second]


def test_a_later_measurement_replaces_an_error_but_not_the_reverse() -> None:
    error, failure = make_record(0, "error"), make_record(0, "failure")
    assert unique_records([error, failure]) == [failure]
    assert unique_records([failure, error]) == [failure]
    assert unique_records([error, dataclasses.replace(error, error="later")]) == [error]


def test_trials_and_tasks_are_separate_episodes() -> None:
    records = [make_record(0), make_record(0, trial=1), make_record(0, task_id=4)]
    assert unique_records(records) == records


def test_fields_of_later_versions_are_ignored() -> None:
    row = {**make_record().to_dict(), "perturbation": "camera"}
    assert EpisodeRecord.from_dict(row).init_state == 0


def test_row_without_a_required_field_is_refused_with_file_and_field(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    row = make_record().to_dict()
    del row["seed"]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"episodes\.jsonl, row 1: .*lacks seed"):
        load_records(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outcome": "won"}, "expected one of success, failure, error"),
        ({"outcome": "failure", "success": True}, "contradicts 'failure'"),
        ({"error": "boom"}, "only for it"),
        ({"outcome": "error", "success": False, "error": None}, "give the text"),
    ],
)
def test_contradictory_records_are_refused(changes: dict[str, Any], message: str) -> None:
    fields = {**make_record().to_dict(), **changes}
    with pytest.raises(ValueError, match=message):
        EpisodeRecord(**fields)
