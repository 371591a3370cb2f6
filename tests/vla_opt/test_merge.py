"""Parts of an evaluation: together they are the whole, and nothing else is let in."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

import reach  # noqa: E402

from vla_opt.cli import main as cli  # noqa: E402
from vla_opt.evaluation.config import EvalConfig, episode_keys  # noqa: E402
from vla_opt.evaluation.merge import MergeError, merge  # noqa: E402
from vla_opt.evaluation.records import EpisodeRecord, load_records  # noqa: E402
from vla_opt.evaluation.run_folder import read_run_folder  # noqa: E402
from vla_opt.evaluation.runner import evaluate  # noqa: E402

STATES = 6
_CHANGING = ("wall_s", "cpu_s", "timestamp")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reach.write_checkpoint(tmp_path_factory.mktemp("policy") / "servo")


def run(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    defaults: dict[str, Any] = {
        "suites": ("libero_object", "libero_goal"),
        "task_ids": (0, 1),
        "episodes": STATES,
        "image_size": reach.SIZE,
        "backend": "serial",
    }
    with reach.reaching(folder.parent / "scratch", changes.pop("faults", {})):
        evaluate(
            EvalConfig(checkpoint=checkpoint, output_dir=folder, **{**defaults, **changes}),
        )
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> list[Path]:
    """The three shards of an evaluation; do not change them."""
    root = tmp_path_factory.mktemp("machines")
    return [run(checkpoint, root / f"m{i}", shard=f"{i}/3") for i in (1, 2, 3)]


@pytest.fixture
def own_parts(parts: list[Path], tmp_path: Path) -> list[Path]:
    """The same, to be changed."""
    return [shutil.copytree(part, tmp_path / part.name) for part in parts]


def change(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads(file.read_text())
    edit(tree)
    file.write_text(json.dumps(tree))


def change_row(part: Path, **changes: Any) -> EpisodeRecord:
    """Change the first row of a part."""
    file = part / "episodes.jsonl"
    first, *rest = file.read_text().splitlines()
    row = {**json.loads(first), **changes}
    file.write_text("\n".join([json.dumps(row), *rest]) + "\n")
    return EpisodeRecord.from_dict(row)


def lasting(record: EpisodeRecord) -> dict[str, Any]:
    return {name: v for name, v in record.to_dict().items() if name not in _CHANGING}


# -- shards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 7, 64])
def test_shards_share_out_every_episode_once_and_each_suite_evenly(count: int) -> None:
    suites = ("libero_object", "libero_goal")
    whole = episode_keys(EvalConfig(suites=suites, episodes=5))
    shards = [
        episode_keys(EvalConfig(suites=suites, episodes=5, shard=f"{i}/{count}"))
        for i in range(1, count + 1)
    ]
    assert sorted(key for shard in shards for key in shard) == sorted(whole)
    for suite in suites:
        sizes = {sum(key.suite == suite for key in shard) for shard in shards}
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/2", "1/2/3"])
def test_shard_that_does_not_exist_is_refused(shard: str) -> None:
    with pytest.raises(ValueError, match=r"expected I/N with I from 1 to N"):
        EvalConfig(shard=shard)


def test_shards_on_one_disk_have_folders_of_their_own(checkpoint: Path, tmp_path: Path) -> None:
    from vla_opt.evaluation._job import prepare

    options: dict[str, Any] = {"checkpoint": checkpoint, "image_size": reach.SIZE}
    folders = {prepare(EvalConfig(shard=s, **options)).output_dir for s in (None, "1/2", "2/2")}
    assert len(folders) == 3


# -- the whole -------------------------------------------------------------------------------------


def test_merged_shards_are_the_evaluation_of_one_machine(
    checkpoint: Path, parts: list[Path], tmp_path: Path
) -> None:
    whole = run(checkpoint, tmp_path / "whole")
    merged = merge(parts, tmp_path / "run" / "eval")
    assert merged.is_complete
    assert merged.duplicates == 0
    alone = {r.key: lasting(r) for r in load_records(whole / "episodes.jsonl")}
    assert {r.key: lasting(r) for r in load_records(merged.output_dir / "episodes.jsonl")} == alone
    failures = [record for record in merged.records if record.video]
    assert failures
    for record in failures:
        video = str(record.video)
        assert (merged.output_dir / video).read_bytes() == (whole / video).read_bytes()
    shown = read_run_folder(tmp_path / "run")
    assert shown.planned_episodes == len(shown.planned_records) == 4 * STATES
    again = merge(parts, tmp_path / "run" / "eval")
    assert again.records == merged.records


def test_evaluation_goes_on_with_a_merged_folder(
    checkpoint: Path, parts: list[Path], tmp_path: Path
) -> None:
    merged = merge(parts[:2], tmp_path / "eval")
    assert not merged.is_complete
    assert "Missing shards: 3/3." in merged.notes
    run(checkpoint, tmp_path / "eval")
    rows = (tmp_path / "eval" / "episodes.jsonl").read_text().splitlines()
    assert len(rows) == len(load_records(tmp_path / "eval" / "episodes.jsonl")) == 4 * STATES


def test_command_line_merges_and_says_what_is_missing(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--output_dir={tmp_path / 'eval'}"]
    assert cli.main(["eval", "merge", *map(str, parts), *words]) == 0
    assert f"{4 * STATES} of {4 * STATES} planned episodes measured" in capsys.readouterr().out
    assert cli.main(["eval", "merge", *map(str, parts[1:]), *words]) == 1
    assert "Missing shards: 1/3" in capsys.readouterr().out
    assert cli.main(["eval", "merge", str(parts[0])]) == 1
    assert "Nothing to merge" in capsys.readouterr().err


# -- refusals --------------------------------------------------------------------------------------


def test_other_weights_are_refused(parts: list[Path], tmp_path: Path) -> None:
    other = reach.write_checkpoint(tmp_path / "other", gains=(2.0, 6.0))
    stranger = run(other, tmp_path / "stranger", shard="3/3")
    with pytest.raises(MergeError, match=r"checkpoint_hash: \w{16} against \w{16}"):
        merge([*parts[:2], stranger], tmp_path / "eval")
    assert not (tmp_path / "eval").exists()


def test_every_difference_of_protocol_is_named(
    checkpoint: Path, parts: list[Path], tmp_path: Path
) -> None:
    stranger = run(checkpoint, tmp_path / "stranger", shard="3/3", execute_steps=8)
    change(stranger / "metadata.json", lambda tree: tree["versions"].update(mujoco="2.3.7"))
    with pytest.raises(MergeError) as refused:
        merge([*parts[:2], stranger], tmp_path / "eval")
    said = str(refused.value)
    assert "execute_steps: 4 against 8" in said
    assert "version of mujoco: 3.8.1 against 2.3.7" in said
    assert str(stranger) in said


def test_rows_of_another_evaluation_in_a_part_are_refused(
    own_parts: list[Path], tmp_path: Path
) -> None:
    change_row(own_parts[1], config_hash="feedfacefeedface")
    with pytest.raises(MergeError, match=r"rows of another evaluation .* \(feedface"):
        merge(own_parts, tmp_path / "eval")


def test_other_versions_that_decide_no_number_are_noted(
    own_parts: list[Path], tmp_path: Path
) -> None:
    change(own_parts[1] / "metadata.json", lambda tree: tree["versions"].update(ray="2.1"))
    merged = merge(own_parts, tmp_path / "eval")
    assert any("version of ray: 2.1," in note for note in merged.notes)


def test_part_without_its_metadata_is_refused(own_parts: list[Path], tmp_path: Path) -> None:
    (own_parts[2] / "metadata.json").unlink()
    with pytest.raises(MergeError, match="nobody can tell what was evaluated"):
        merge(own_parts, tmp_path / "eval")


def test_part_without_a_video_that_it_names_is_refused(
    own_parts: list[Path], tmp_path: Path
) -> None:
    shutil.rmtree(own_parts[0] / "videos")
    with pytest.raises(MergeError, match="Copy the whole folder"):
        merge(own_parts, tmp_path / "eval")


def test_part_of_an_older_version_has_defaults(own_parts: list[Path], tmp_path: Path) -> None:
    file = own_parts[0] / "config.yaml"
    lines = file.read_text().splitlines()
    older = [line for line in lines if not line.startswith("first_init_state:")]
    assert len(older) == len(lines) - 1
    file.write_text("\n".join(older) + "\n")
    assert merge(own_parts, tmp_path / "eval").is_complete


def test_another_evaluation_is_not_overwritten(parts: list[Path], tmp_path: Path) -> None:
    shutil.copytree(parts[0], tmp_path / "eval")
    with pytest.raises(MergeError, match="no result of merging"):
        merge(parts[1:], tmp_path / "eval")
    with pytest.raises(MergeError, match="is one of the parts"):
        merge(parts, parts[0])


# -- episodes that ran twice -----------------------------------------------------------------------


def test_episode_that_ran_twice_alike_counts_once(
    checkpoint: Path, parts: list[Path], tmp_path: Path
) -> None:
    other = run(checkpoint, tmp_path / "other", task_ids=(0,), suites=("libero_object",))
    merged = merge([*parts, other], tmp_path / "eval")
    assert merged.duplicates == STATES
    assert len(merged.records) == merged.planned == 4 * STATES


def test_episode_that_came_out_differently_is_an_error(
    checkpoint: Path, parts: list[Path], tmp_path: Path
) -> None:
    other = run(checkpoint, tmp_path / "other", task_ids=(0,), suites=("libero_object",))
    steps = load_records(other / "episodes.jsonl")[0].steps
    record = change_row(other, steps=steps + 1)
    with pytest.raises(MergeError) as refused:
        merge([*parts, other], tmp_path / "eval")
    assert f"Episode {record.label}" in str(refused.value)
    assert f"steps {steps} against {steps + 1}" in str(refused.value)


def test_error_in_one_part_gives_way_to_an_outcome_in_another(
    checkpoint: Path, parts: list[Path], tmp_path: Path
) -> None:
    broken = run(
        checkpoint,
        tmp_path / "broken",
        task_ids=(0,),
        suites=("libero_object",),
        faults={"0/1": "raise!@reset"},
    )
    for order in ([broken, *parts], [*parts, broken]):
        merged = merge(order, tmp_path / "eval")
        assert merged.is_complete
        assert all(record.scored for record in merged.records)
