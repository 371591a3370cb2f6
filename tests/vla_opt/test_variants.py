"""Evaluating variants: which run, what they stand for, and tables by dimension that say so."""

from __future__ import annotations

import csv
import functools
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from envs.errors import UnknownNameError as UnknownEnvNameError
from envs.libero_plus import LiberoPlusError, list_variants
from envs.rollout import EpisodeWorker
from vla_opt.errors import UnknownNameError
from vla_opt.evaluation import EpisodeRecord, load_records, write_report
from vla_opt.evaluation.config import EvalConfig, episode_keys, identity, plan_episodes
from vla_opt.evaluation.contract import Checkpoint
from vla_opt.evaluation.dimensions import (
    MEAN,
    TOTAL,
    dimension_csv,
    dimension_markdown,
    dimension_tables,
    dimension_text,
)
from vla_opt.evaluation.run_folder import read_run_folder
from vla_opt.evaluation.runner import evaluate
from vla_opt.evaluation.variants import Stratum, VariantConfig, plan_variants

PLUS = "libero_plus/libero_object"


def plan(suites=(PLUS,), task_ids=None, **changes):
    return plan_variants(suites, task_ids, VariantConfig(**changes))


# -- which variants run ---------------------------------------------------------------------------


def test_a_suite_runs_what_can_run_and_says_what_cannot():
    whole = plan()
    assert len(whole.variants) == 1827
    assert sum(s.tasks for s in whole.strata) == 2518
    (note,) = whole.notes()
    assert note.startswith("libero_plus: 691 of the 2518 tasks asked for cannot run")
    assert "light 297" in note


def test_family_stands_for_all_its_suites():
    keys, whole = plan_episodes(EvalConfig(suites=("libero_plus",)))
    assert len(keys) == len(whole.variants) == 7045
    assert {key.init_state for key in keys} == {0}
    assert sum(s.tasks for s in whole.strata) == 10030


def test_plain_and_perturbed_tasks_share_one_evaluation():
    config = EvalConfig(
        suites=("libero_object", PLUS), episodes=2, variants=VariantConfig(sample=30)
    )
    suites = Counter(key.suite for key in episode_keys(config))
    assert suites == {"libero_object": 20, PLUS: 30}


def test_sample_has_the_make_up_of_what_can_run():
    drawn = plan(("libero_plus/libero_object", "libero_plus/libero_goal"), sample=200)
    assert len(drawn.variants) == 200
    assert all(s.planned >= 1 for s in drawn.strata if s.runnable)
    runnable = sum(s.runnable for s in drawn.strata)
    for dimension in ("camera", "robot", "noise"):
        part = [s for s in drawn.strata if s.dimension == dimension]
        share = sum(s.runnable for s in part) / runnable
        assert sum(s.planned for s in part) == pytest.approx(200 * share, abs=6)


def test_sample_smaller_than_the_strata_still_reaches_every_dimension():
    drawn = plan(("libero_plus/libero_object", "libero_plus/libero_goal"), sample=8)
    assert len(drawn.variants) == 8
    assert {v.dimension for v in drawn.variants} >= {"camera", "robot", "language", "noise"}


def test_dimensions_and_names_select():
    names = [v.name for v in list_variants("libero_object", dimension="noise")[:3]]
    chosen = plan(names=tuple(names[1:]))
    assert [v.name for v in chosen.variants] == names[1:]
    assert {v.dimension for v in plan(dimensions=("noise", "camera")).variants} == {
        "noise",
        "camera",
    }


def test_variants_of_the_tasks_that_a_policy_knows():
    known = plan(base_tasks=(0, 1), sample=40)
    assert {variant.base.task_id for variant in known.variants} == {0, 1}
    assert len(known.variants) == 40
    everything = plan(base_tasks=(0, 1))
    assert sum(s.tasks for s in known.strata) == sum(s.tasks for s in everything.strata) < 600
    style = plan(("libero_style/libero_object",), base_tasks=(3,))
    assert sum(s.tasks for s in style.strata) == 60
    with pytest.raises(UnknownEnvNameError, match="0 to 9"):
        plan(base_tasks=(10,))


def test_what_was_named_and_cannot_run_is_an_error():
    light = list_variants("libero_object", dimension="light")[0]
    for asked in ({"names": (light.name,)}, {"task_ids": (light.task_id,)}):
        with pytest.raises(LiberoPlusError, match="LIBERO_PLUS_ASSETS"):
            plan(**asked)
    with pytest.raises(LiberoPlusError, match="Light Conditions"):
        plan(dimensions=("light",))


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"dimensions": ("lite",)}, UnknownEnvNameError, "'light'"),
        ({"names": ("pick_up_the_milk_and_place_it_in_the_baskets",)}, UnknownNameError, "milk"),
        ({"task_ids": (9999,)}, UnknownEnvNameError, "0 to 2517"),
        ({"difficulties": (2,)}, LiberoPlusError, "LIBERO_PLUS_LABELS"),
        ({"sample": 5000}, ValueError, "only 1827"),
        ({"difficulties": (6,)}, ValueError, "1 to 5"),
        ({"sample": 0}, ValueError, "1 or more"),
    ],
)
def test_what_does_not_exist_is_refused(asked, error, message):
    with pytest.raises(error, match=message):
        plan(**asked)


def test_labels_make_the_strata(tmp_path):
    rows = [
        {"name": v.name, "difficulty_level": 1 + v.task_id % 5}
        for v in list_variants("libero_object")
    ]
    labels = tmp_path / "task_classification.json"
    labels.write_text(json.dumps({"libero_object": rows}))
    labelled = plan(labels=labels, sample=100)
    assert labelled.levels["libero_plus"] == "difficulty"
    assert {s.level for s in labelled.strata} == {1, 2, 3, 4, 5}
    only = plan(labels=labels, difficulties=(2,), dimensions=("camera",))
    assert {v.difficulty for v in only.variants} == {2}


def test_published_behaviour_is_another_evaluation_and_the_default_is_the_one_it_always_was():
    what = {"checkpoint_hash": "x", "image_size": 128, "render_profile": "exact"}
    plain = identity(EvalConfig(), **what)
    compat = EvalConfig(variants=VariantConfig(published_compat=True))
    assert set(identity(compat, **what)) - set(plain) == {"published_compat"}


# -- tables ---------------------------------------------------------------------------------------


def stratum(dimension, level, tasks, runnable=None, suite=PLUS):
    runnable = tasks if runnable is None else runnable
    return Stratum(
        family=suite.partition("/")[0],
        suite=suite,
        dimension=dimension,
        level=level,
        tasks=tasks,
        runnable=runnable,
        planned=runnable,
    )


def episodes(dimension, level, outcomes, start, suite=PLUS):
    words = {"s": "success", "f": "failure", "e": "error"}
    return [
        EpisodeRecord(
            suite=suite,
            task_id=start + i,
            init_state=0,
            seed=i,
            outcome=words[outcome],
            success=outcome == "s",
            error="lost" if outcome == "e" else None,
            steps=10,
            wall_s=1.0,
            cpu_s=1.0,
            dimension=dimension,
            level=level,
        )
        for i, outcome in enumerate(outcomes)
    ]


STRATA = [
    stratum("camera", 1, 90),
    stratum("camera", 2, 10),
    stratum("noise", 1, 300),
    stratum("light", None, 50, runnable=0),
]
RECORDS = [
    *episodes("camera", 1, "ssff", 0),
    *episodes("camera", 2, "ss", 10),
    *episodes("noise", 1, "sffe", 20),
]


def test_dimension_rates_weigh_outcomes_by_the_tasks_they_stand_for():
    (shown,) = dimension_tables(RECORDS, STRATA)
    camera, light, noise = shown.rows
    assert camera.estimate.rate == pytest.approx(0.9 * 0.5 + 0.1 * 1.0)
    assert (camera.successes, camera.scored) == (4, 6)
    assert noise.estimate.rate == pytest.approx(1 / 3)
    assert noise.errors == 1
    assert light.estimate is None
    assert light.note == "not run: all 50 tasks need the benchmark's assets"


def test_total_weighs_tasks_and_mean_weighs_dimensions():
    (shown,) = dimension_tables(RECORDS, STRATA)
    assert shown.total.estimate.rate == pytest.approx((100 * 0.55 + 300 / 3) / 400)
    assert shown.mean.estimate.rate == pytest.approx((0.55 + 1 / 3) / 2)
    assert shown.total.title == TOTAL
    assert shown.mean.title == f"{MEAN}, over 2 of 3"
    assert (shown.total.runnable, shown.total.tasks) == (400, 450)


def test_strata_without_an_outcome_are_pooled_with_their_neighbours():
    records = episodes("camera", 1, "ssff", 0)
    (shown,) = dimension_tables(records, STRATA[:2])
    assert shown.rows[0].estimate.rate == pytest.approx(0.5)


def test_text_and_markdown_label_both_summaries_and_the_coverage():
    (shown,) = dimension_tables(RECORDS, STRATA)
    for text in (dimension_text(shown), dimension_markdown(shown)):
        assert TOTAL in text
        assert f"{MEAN}, over 2 of 3" in text
        assert "9 episodes, for 400 of 450 tasks" in text
    head = dimension_markdown(shown).splitlines()[0]
    assert head.index("Camera") < head.index("Light") < head.index("Noise")


def test_csv_has_every_row_and_level():
    rows = list(csv.DictReader(dimension_csv(dimension_tables(RECORDS, STRATA)).splitlines()))
    by_name = {(row["row"], row["level"]): row for row in rows}
    assert float(by_name["Camera", ""]["rate"]) == pytest.approx(0.55)
    assert float(by_name["Camera", "2"]["rate"]) == 1.0
    assert by_name["Light", ""]["rate"] == ""
    assert by_name["Light", ""]["runnable"] == "0"


def test_generated_variants_are_a_table_of_their_own():
    style = "libero_style/libero_object"
    strata = [*STRATA, stratum("light", 1, 40, suite=style)]
    records = [*RECORDS, *episodes("light", 1, "ss", 0, suite=style)]
    plus, own = dimension_tables(records, strata)
    assert (plus.family, own.family) == ("libero_plus", "libero_style")
    assert plus.total.scored == 9
    assert "not LIBERO-Plus" in dimension_text(own)
    assert dimension_tables(records, STRATA)[0].rows[1].estimate is None


# -- a whole evaluation, without simulator and network --------------------------------------------


class CountingEnv:
    """Succeeds at every task with an even index."""

    def __init__(self, task, config):
        self._task = task
        self.spec = config.env_spec
        self.task_description = "do it"

    def reset(self, *, seed, options):
        assert options == {"init_state": 0}
        return self._observe(), {"steps": 0}

    def step_chunk(self, actions):
        won = self._task[1] % 2 == 0
        return self._observe(), 0.0, won, not won, {"is_success": won, "steps": 4}

    def _observe(self):
        image = np.zeros((128, 128, 3), np.uint8)
        return {"pixels": {"image": image, "image2": image}, "agent_pos": np.zeros(8, np.float32)}

    def close(self):
        pass


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """An evaluation of 40 LIBERO-Plus tasks; its run folder."""
    features = {
        "input_features": {
            "observation.images.image": {"shape": [3, 128, 128]},
            "observation.state": {"shape": [8]},
        },
        "output_features": {"action": {"shape": [7]}},
    }
    checkpoint = Checkpoint(folder=tmp_path / "c", config=features, spec=None, sha256="abc")
    policy = SimpleNamespace(infer=lambda seen: [np.zeros((4, 7)) for _ in seen])
    worker = functools.partial(EpisodeWorker, make_env=CountingEnv)
    monkeypatch.setattr("vla_opt.evaluation._job.open_checkpoint", lambda path: checkpoint)
    monkeypatch.setattr("vla_opt.evaluation.runner._policy_recipe", lambda job: lambda: policy)
    monkeypatch.setattr("vla_opt.evaluation.runner.EpisodeWorker", worker)
    config = EvalConfig(
        checkpoint=tmp_path,
        suites=(PLUS,),
        variants=VariantConfig(sample=40),
        backend="serial",
        videos="none",
        output_dir=tmp_path / "run" / "eval",
    )
    return evaluate(config), tmp_path / "run"


def test_rows_say_which_variant_they_are_of(evaluated):
    summary, folder = evaluated
    records = load_records(folder / "eval" / "episodes.jsonl")
    assert len(records) == summary.scored == 40
    by_id = {v.task_id: v for v in list_variants("libero_object")}
    for record in records:
        variant = by_id[record.task_id]
        assert (record.variant, record.dimension) == (variant.name, variant.dimension)
        assert record.level == variant.magnitude
        assert record.language == variant.language


def test_report_tables_and_notes_carry_the_dimensions(evaluated):
    summary, folder = evaluated
    text = write_report(folder).read_text()
    assert "LIBERO-Plus by dimension" in text
    assert "691 of the 2518 tasks asked for cannot run" in text
    assert 'data-row="libero_plus/libero_object"' in text
    assert 'data-row="libero_plus/libero_object 0"' not in text
    assert TOTAL in (folder / "eval" / "dimensions.md").read_text()
    assert "libero_plus,Camera" in (folder / "eval" / "dimensions.csv").read_text()
    run = read_run_folder(folder)
    assert len(run.planned_records) == run.planned_episodes == 40
    assert run.is_complete
    assert sum(s.planned for s in summary.strata) == 40
