"""The report shows the numbers of the records, carries everything it shows, and admits gaps."""

import base64
import html
import io
import json
import math
import random
import re
import shutil
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml

from vla_opt.cli import report as report_verb
from vla_opt.errors import ConfigError
from vla_opt.evaluation import EpisodeRecord, append_record, load_records, wilson, write_report
from vla_opt.io import append_jsonl, atomic_write_json, atomic_write_text

LANGUAGES = (
    "pick up the alphabet soup and place it in the basket",
    "pick up the cream cheese and place it in the basket",
    "pick up the salad dressing and place it in the basket",
    "pick up the <b>bbq</b> sauce & place it in the basket",
)
STEPS = 600
VOID = {"meta", "br", "line", "rect", "circle", "polyline", "input", "img", "link"}


# --- a run folder as the other parts of the project write it -------------------------------------


def make_run(root: Path, *, init_states: int = 12, seed: int = 0) -> Path:
    """Write a run of four tasks with failures, one error, spectra of five groups and warnings."""
    rng = random.Random(seed)
    write_episodes(root / "eval", init_states, rng)
    write_training(root / "train", rng)
    atomic_write_text(root / "config.yaml", yaml.safe_dump({"name": root.name, "budget_min": 20}))
    info = {"total_episodes": 80, "total_frames": 9876, "fps": 20}
    atomic_write_json(root / "demos" / "meta" / "info.json", info)
    tasks = [
        {
            "suite": "libero_object",
            "task_id": task_id,
            "language": language,
            "successes": 20,
            "attempts": 20 + task_id,
            "mean_steps": 118.4,
            "reasons": ["time limit while lifting"] if task_id else [],
        }
        for task_id, language in enumerate(LANGUAGES)
    ]
    options = {"image_size": 128, "render_profile": "fast", "noise_levels": [0.0, 0.2]}
    record = {"options": options, "per_task": 20, "tasks": tasks}
    atomic_write_json(root / "demos" / "meta" / "demos.json", record)
    return root


def write_episodes(folder: Path, init_states: int, rng: random.Random) -> None:
    config = {
        "suites": ["libero_object"],
        "task_ids": list(range(len(LANGUAGES))),
        "episodes": init_states,
        "trials": 1,
        "render_profile": "exact",
    }
    atomic_write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    more = {
        "episodes_planned": len(LANGUAGES) * init_states,
        "env_spec": {"control_hz": 20, "action_low": -1.0},
        "identity": {"execute_steps": 4},
        "notes": [],
    }
    atomic_write_json(folder / "metadata.json", {**metadata("eval"), **more})
    for task_id, language in enumerate(LANGUAGES):
        for init_state in range(init_states):
            fails = rng.random() < 0.03 + 0.09 * task_id
            lost = (task_id, init_state) == (1, 4)
            outcome = "error" if lost else "failure" if fails else "success"
            video = None
            if not lost and (fails or init_state < 4):
                video = f"videos/libero_object_{task_id}_{init_state}.mp4"
                path = folder / video
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(make_video(task_id, succeeds=not fails))
            steps = 280 if fails else rng.randrange(95, 160)
            append_record(
                folder / "episodes.jsonl",
                EpisodeRecord(
                    suite="libero_object",
                    task_id=task_id,
                    init_state=init_state,
                    seed=rng.randrange(2**31),
                    outcome=outcome,
                    success=outcome == "success",
                    steps=0 if lost else steps,
                    wall_s=0.02 * steps,
                    cpu_s=0.018 * steps,
                    worker=init_state % 2,
                    retries=2 if lost else 0,
                    error="worker 1 was killed (SIGKILL) three times" if lost else None,
                    video=video,
                    language=language,
                    config_hash="c0ffee12",
                    checkpoint_hash="5eed1234abcd",
                    versions="torch 2",
                    timestamp=f"2026-01-31T12:{task_id:02d}:{init_state:02d}Z",
                ),
            )


def write_training(folder: Path, rng: random.Random) -> None:
    config = {
        "steps": STEPS,
        "seed": 7,
        "batch_size": 32,
        "policy": {"type": "vla_adapter", "chunk_size": 8},
        "optimizer": {"name": "pion", "lr": 0.001, "promotion_steps": 1, "suppression_steps": 4},
    }
    atomic_write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    routing = (
        "algorithm  role    lr x  parameter                       shape    count  elements\n"
        "pion       action  1     action_head.blocks.*.q.weight  128x128  4      65,536"
    )
    more = {"routing": routing, "data": {"fingerprint": "ab12"}, "trainable_parameters": 1234567}
    atomic_write_json(folder / "metadata.json", {**metadata("train"), **more})
    for step in range(10, STEPS + 1, 10):
        append_jsonl(folder / "log.jsonl", train_row(step, rng))
        if step % 50 == 0:
            append_jsonl(folder / "log.jsonl", spectra_row(step, rng))
    warning = {
        "kind": "warning",
        "step": 150,
        "layers": ["action_head.blocks.0.gate", "action_head.fc2.weight"],
        "message": "2 matrices have not moved for 3 measurements",
    }
    append_jsonl(folder / "log.jsonl", warning)
    append_jsonl(folder / "warnings.jsonl", warning)


def train_row(step: int, rng: random.Random) -> dict[str, Any]:
    progress = step / STEPS
    return {
        "kind": "train",
        "step": step,
        "loss": 0.03 + 0.45 * math.exp(-6 * progress) * (1 + 0.2 * rng.random()),
        "lr": 1e-3 * min(1.0, step / 50) * 0.5 * (1 + math.cos(math.pi * progress)),
        "grad_norm": 1.5 * math.exp(-2 * progress) * (1 + 0.5 * rng.random()),
        "samples_per_s": 62.0 + rng.random(),
        "step_s": 0.51,
        "optimizer_s": 0.08,
        "data_s": 0.01,
        "wall_s": 0.51 * step,
    }


def spectra_row(step: int, rng: random.Random) -> dict[str, Any]:
    groups = {}
    names = ("language_model/muon", "vision_projector/muon", "action_head/pion", "queries/adamw")
    for i, name in enumerate(names):
        spectral = "adamw" not in name
        groups[name] = {
            "algorithm": name.split("/")[1],
            "stable_rank": 2 + i + math.log(step) * (1 + 0.1 * rng.random()) if spectral else None,
            "effective_rank": 12.0 + i if spectral else None,
            "top_energy": 0.6 / (1 + i) * (1 + 100 / step) / 3 if spectral else None,
            "directions_passed": 4.0 + i if spectral else None,
            "update_rms": 2e-4 / (i + 1),
            "weight_rms": 0.03 + 0.01 * i,
            "update_to_weight": 10 ** (-2 - i) * (1 - 0.9 * step / STEPS),
            "zero_updates": 0,
            "tensors": 14 - i,
            "matrices": 12 - i,
        }
    return {"kind": "spectra", "step": step, "groups": groups}


def metadata(part: str) -> dict[str, Any]:
    return {
        "time_utc": "2026-01-31T12:00:00Z",
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "git_dirty": False,
        "versions": {"vla-opt": "0.1.0", "torch": "2.11.0", "no-such-package": None},
        "python": "3.12.1",
        "platform": "Linux-x86_64",
        "cpu_count": 2,
        "command": f"vla-opt {part} --config_path=configs/quickstart.yaml",
    }


@lru_cache
def make_video(task_id: int, *, succeeds: bool, frames: int = 24) -> bytes:
    """An mp4 of two 128x128 views in which a block moves to its goal, or past it."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.options = {"preset": "ultrafast", "threads": "1"}
        stream.width, stream.height, stream.pix_fmt = 256, 128, "yuv420p"
        for t in range(frames):
            image = np.full((128, 256, 3), (70, 74 + 12 * task_id, 82), np.uint8)
            image[80:, :] = (150, 132, 110)
            x = 12 + int((68 if succeeds else 96) * t / frames)
            for left in (0, 128):
                image[92:108, left + 76 : left + 104] = (95, 66, 40)
                image[60:76, left + x : left + x + 14] = (200, 60, 50)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


# --- reading the page ----------------------------------------------------------------------------


class Page(HTMLParser):
    """Every element with its attributes, all text, and whether the elements are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.raw = text
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, f"</{tag}> without a start"
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str, **having: str) -> list[dict[str, str]]:
        wanted = {name.replace("_", "-"): value for name, value in having.items()}
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]


def report_of(root: Path, **options: Any) -> Page:
    return Page(write_report(root, **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return report_of(run)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small", init_states=3)


@pytest.fixture
def own_run(small_run: Path, tmp_path: Path) -> Path:
    """A run that a test may damage."""
    return shutil.copytree(small_run, tmp_path / "run")


# --- numbers -------------------------------------------------------------------------------------


def test_every_episode_is_shown_once_with_its_outcome(run: Path, page: Page) -> None:
    squares = [a for a in page.all("i") if "data-episode" in a]
    rows = [json.loads(line) for line in (run / "eval" / "episodes.jsonl").read_text().splitlines()]
    shown = sorted((a["data-episode"], a["data-outcome"]) for a in squares)
    assert shown == sorted(
        (f"{r['suite']}/{r['task_id']}/{r['init_state']}/{r['trial']}", r["outcome"]) for r in rows
    )


def test_counts_equal_those_recomputed_from_the_rows(run: Path, page: Page) -> None:
    rows = [json.loads(line) for line in (run / "eval" / "episodes.jsonl").read_text().splitlines()]
    expected = {}
    for name in {"libero_object", *(f"libero_object {r['task_id']}" for r in rows)}:
        mine = [r for r in rows if name in (r["suite"], f"{r['suite']} {r['task_id']}")]
        outcomes = [r["outcome"] for r in mine]
        scored = outcomes.count("success") + outcomes.count("failure")
        expected[name] = (outcomes.count("success"), scored, outcomes.count("error"))
    shown = {
        a["data-row"]: tuple(int(a[f"data-{n}"]) for n in ("successes", "scored", "errors"))
        for a in page.all("tr")
        if "data-row" in a
    }
    assert shown == expected
    assert len(shown) == len(LANGUAGES) + 1


def test_headline_states_count_rate_and_interval(run: Path, page: Page) -> None:
    records = load_records(run / "eval" / "episodes.jsonl")
    k = sum(record.success for record in records)
    n = sum(record.scored for record in records)
    low, high = wilson(k, n)
    assert f"{k}/{n}" in page.text
    assert f"95 % Wilson interval {100 * low:.1f}\N{EN DASH}{100 * high:.1f} %" in page.text
    (card,) = page.all("div", **{"class": "card head"})
    assert (card["data-successes"], card["data-scored"]) == (str(k), str(n))


def test_errors_are_listed_apart_and_the_denominator_is_said(run: Path, page: Page) -> None:
    assert "worker 1 was killed (SIGKILL) three times" in page.text
    assert "1 episode ended with an error of the machinery" in page.text
    scored = sum(r.scored for r in load_records(run / "eval" / "episodes.jsonl"))
    assert f"not in the {scored} above; counted as failures it would be" in page.text


def test_unequal_tasks_show_the_mean_over_tasks_beside_the_pooled_rate(page: Page) -> None:
    assert "mean over tasks" in page.text


# --- self-containment ----------------------------------------------------------------------------


def test_nothing_is_loaded_from_outside(page: Page) -> None:
    assert not re.search(r"https?://|//cdn", page.raw)
    assert not [tag for tag, _ in page.elements if tag in ("link", "iframe", "object", "base")]
    for _, attributes in page.elements:
        for name in ("src", "href", "poster", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "url(" not in page.raw
    assert "@import" not in page.raw


def test_page_forbids_requests(page: Page) -> None:
    (policy,) = page.all("meta", http_equiv="Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]


def test_text_of_the_run_cannot_become_markup(page: Page) -> None:
    assert "<b>bbq" not in page.raw
    assert "pick up the <b>bbq</b> sauce & place it in the basket" in page.text


def test_links_lead_somewhere(page: Page) -> None:
    targets = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for attributes in page.all("a"):
        assert attributes["href"].removeprefix("#") in targets


# --- videos --------------------------------------------------------------------------------------


def test_videos_are_playable_h264_and_failures_come_first(run: Path, page: Page) -> None:
    outcomes = [a["class"] for a in page.all("figure")]
    assert outcomes == sorted(outcomes)  # "failure" before "success"
    assert "failure" in outcomes
    assert "success" in outcomes
    for attributes in page.all("video"):
        assert {"muted", "loop", "controls", "preload"} <= set(attributes)
        head, _, data = attributes["src"].partition(",")
        assert head == "data:video/mp4;base64"
        with av.open(io.BytesIO(base64.b64decode(data))) as container:
            assert container.streams.video[0].codec_context.name == "h264"


def test_video_limit_keeps_failures_over_successes_and_is_said(run: Path, tmp_path: Path) -> None:
    records = load_records(run / "eval" / "episodes.jsonl")
    failures = [r for r in records if r.video and not r.success]
    successes = [r for r in records if r.video and r.success]
    limit = len(failures) + 2
    page = report_of(run, out=tmp_path / "small.html", max_videos=limit)
    shown = {a["id"] for a in page.all("figure")}
    assert len(shown) == limit
    assert {"episode-" + r.label.replace("/", "-") for r in failures} <= shown
    assert (
        f"{limit} of {len(failures) + len(successes)} recorded videos are embedded: "
        f"{len(failures)} of {len(failures)} failures and 2 of {len(successes)} successes"
    ) in page.text


def test_limited_videos_are_spread_over_tasks(run: Path, tmp_path: Path) -> None:
    records = load_records(run / "eval" / "episodes.jsonl")
    failing = {r.task_id for r in records if r.video and not r.success}
    page = report_of(run, out=tmp_path / "small.html", max_videos=len(failing))
    shown = {a["id"].split("-")[2] for a in page.all("figure")}
    assert shown == {str(task_id) for task_id in failing}


def test_byte_limit_holds(run: Path, tmp_path: Path) -> None:
    limit = 20_000
    page = report_of(run, out=tmp_path / "small.html", max_video_bytes=limit)
    sizes = [len(base64.b64decode(a["src"].partition(",")[2])) for a in page.all("video")]
    assert 0 < sum(sizes) <= limit


def test_missing_video_files_are_counted(own_run: Path) -> None:
    videos = sorted((own_run / "eval" / "videos").glob("*.mp4"))
    videos[0].unlink()
    page = report_of(own_run)
    assert len(page.all("video")) == len(videos) - 1
    assert "1 named by the rows are missing on disk" in page.text


# --- training and set-up -------------------------------------------------------------------------


def test_curves_and_spectra_are_drawn_for_every_group(page: Page) -> None:
    labels = [a["aria-label"] for a in page.all("svg") if "bar" not in a.get("class", "")]
    assert labels == [
        "Training loss",
        "Learning rate",
        "Gradient norm",
        "Stable rank of the momentum",
        "Share of energy in the top direction",
        "Directions passed per matrix",
        "Update RMS / weight RMS",
    ]
    for group in ("language_model/muon", "action_head/pion", "queries/adamw"):
        assert group in page.text


def test_warnings_are_listed_once_with_their_layers(page: Page) -> None:
    assert page.text.count("2 matrices have not moved for 3 measurements") == 1
    assert "action_head.blocks.0.gate" in page.text
    assert "Warnings (1)" in page.text


def test_setup_is_shown(page: Page) -> None:
    for expected in (
        "promotion_steps: 1",
        "budget_min: 20",
        "pion action 1 action_head.blocks.*.q.weight 128x128 4 65,536",
        "data.fingerprint ab12",
        "identity.execute_steps \N{EN DASH} 4",
        "control_hz: 20",
        "libero_object 3 20/23 118 time limit while lifting",
        "render_profile fast",
        "80 episodes, 9876 frames at 20 Hz",
        "torch 2.11.0",
        "vla-opt train --config_path=configs/quickstart.yaml",
        "vla-opt eval --config_path=configs/quickstart.yaml",
        "Training seed 7",
        "5eed1234abcd",
        "600 of 600",
    ):
        assert expected in page.text


def test_commands_to_repeat_the_run_name_its_commit_and_its_configurations(
    own_run: Path,
) -> None:
    text = html.unescape(report_of(own_run).raw)
    again = own_run.with_name("run-again")
    for line in (
        "git checkout 0123456789abcdef0123456789abcdef01234567",
        "vla-opt demos --suites=libero_object --task_ids=0,1,2,3 --per_task=20 --image_size=128 "
        f"--render_profile=fast --noise_levels=0.0,0.2 --root={again}/demos",
        f"vla-opt train --config_path={own_run}/train/config.yaml --output_dir={again}/train "
        f"--data.root={again}/demos --data.cache_dir={again}/cache",
        f"vla-opt eval --config_path={own_run}/eval/config.yaml --checkpoint={again}/train "
        f"--output_dir={again}/eval",
        f"vla-opt report --run_dir={again}",
    ):
        assert line in text


def test_code_with_uncommitted_changes_is_admitted(own_run: Path) -> None:
    path = own_run / "train" / "metadata.json"
    path.write_text(path.read_text().replace('"git_dirty": false', '"git_dirty": true'))
    page = report_of(own_run)
    assert "uncommitted changes in the code" in page.text
    assert "the commit alone does not give this code" in page.text


def test_complete_run_says_so_and_has_no_notes(page: Page) -> None:
    assert "complete" in page.text
    assert not page.all("div", id="notes")


# --- partial, missing, damaged -------------------------------------------------------------------


def test_run_in_progress_states_how_far_it_is(own_run: Path) -> None:
    for path, keep in ((own_run / "eval" / "episodes.jsonl", 5), (own_run / "train/log.jsonl", 9)):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:keep]) + lines[keep][:20])  # and a half-written row
    page = report_of(own_run)
    assert "The evaluation is unfinished: 5 of 12 planned episodes are done" in page.text
    assert "Training is unfinished: 80 of 600 steps" in page.text
    assert "partial run" in page.text
    assert len([a for a in page.all("i") if "data-episode" in a]) == 5


def test_run_without_evaluation_shows_training_and_says_what_is_missing(own_run: Path) -> None:
    (own_run / "eval" / "episodes.jsonl").unlink()
    page = report_of(own_run)
    assert "No episode has been evaluated yet" in page.text
    assert not page.all("div", **{"class": "card head"})
    assert "Training loss" in page.text


def test_evaluation_alone_is_reported(own_run: Path, tmp_path: Path) -> None:
    page = report_of(own_run / "eval", out=tmp_path / "out.html")
    assert len([a for a in page.all("i") if "data-episode" in a]) == 12
    assert page.all("video")
    assert "There is no training in this folder" in page.text


def test_run_that_only_has_demonstrations_is_reported(own_run: Path, tmp_path: Path) -> None:
    (own_run / "demos").rename(tmp_path / "demos")
    page = report_of(tmp_path)
    assert "No episode has been evaluated yet" in page.text
    assert "80 episodes, 9876 frames" in page.text


def test_run_whose_plan_is_unknown_is_not_called_complete(own_run: Path) -> None:
    (own_run / "eval" / "metadata.json").unlink()
    page = report_of(own_run)
    assert "complete" not in page.text
    assert "How many episodes were planned is not recorded" in page.text


def test_damaged_rows_are_never_half_counted(own_run: Path) -> None:
    path = own_run / "eval" / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{broken\n" + "".join(lines[1:]))
    page = report_of(own_run)
    assert "The episode rows are damaged and not used" in page.text
    assert "line 2" in page.text
    assert "damaged files" in page.text
    assert not [a for a in page.all("i") if "data-episode" in a]


def test_damaged_configuration_and_metadata_are_notes(own_run: Path) -> None:
    (own_run / "train" / "config.yaml").write_text("a: [1, 2")
    (own_run / "eval" / "metadata.json").write_text("{")
    page = report_of(own_run)
    assert "train/config.yaml is not valid YAML" in page.text
    assert "eval/metadata.json is not valid JSON" in page.text


def test_episodes_of_an_earlier_larger_call_are_shown_and_told_apart(own_run: Path) -> None:
    path = own_run / "eval" / "config.yaml"
    path.write_text(path.read_text().replace("episodes: 3", "episodes: 2"))
    metadata_path = own_run / "eval" / "metadata.json"
    metadata_path.write_text(
        metadata_path.read_text().replace('"episodes_planned": 12', '"episodes_planned": 8')
    )
    page = report_of(own_run)
    assert "4 of the 12 episodes shown were asked for by an earlier call" in page.text
    assert "unfinished" not in page.text


def test_notes_of_the_evaluation_are_shown(own_run: Path) -> None:
    path = own_run / "eval" / "metadata.json"
    path.write_text(path.read_text().replace('"notes": []', '"notes": ["used step 400"]'))
    assert "Evaluation: used step 400" in report_of(own_run).text


def test_mixed_experiments_are_noted(own_run: Path) -> None:
    path = own_run / "eval" / "episodes.jsonl"
    text = path.read_text()
    assert "different code" not in report_of(own_run).text
    for old, new in {"c0ffee12": "decaf000", "5eed1234abcd": "other", "torch 2": "torch 3"}.items():
        text = text.replace(old, new, 1)
    path.write_text(text)
    page = report_of(own_run)
    assert "2 different evaluation configurations" in page.text
    assert "2 different checkpoints" in page.text
    assert "run by different code: torch 2; torch 3." in page.text


def test_simplified_rendering_is_said(own_run: Path) -> None:
    path = own_run / "eval" / "episodes.jsonl"
    old, new = '"render_profile":"exact"', '"render_profile":"fast"'
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert "simplified rendering: not comparable" in report_of(own_run).text


def test_losses_that_are_not_numbers_leave_a_gap(own_run: Path) -> None:
    row = {"kind": "train", "step": 610, "loss": math.nan, "lr": 0.0, "grad_norm": math.inf}
    append_jsonl(own_run / "train" / "log.jsonl", row)
    page = report_of(own_run)
    assert not re.search(r'points="[^"]*(nan|inf)', page.raw)


def test_success_during_training_is_drawn_with_counts(own_run: Path) -> None:
    for step, k in ((300, 4), (600, 9)):
        row = {"kind": "eval", "step": step, "successes": k, "episodes": 10}
        append_jsonl(own_run / "train" / "log.jsonl", row)
    page = report_of(own_run)
    assert page.all("svg", aria_label="Success during training")
    assert "last 9/10 (90.0 %" in page.text


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run: expected at least one of train"):
        write_report(tmp_path)


def test_missing_folder_is_refused_with_the_nearest_one(own_run: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist\. Did you mean '.*/run'"):
        write_report(own_run.with_name("runn"))


# --- the verb ------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["{}", "--run_dir={}"])
def test_verb_writes_the_report_and_prints_rates(
    own_run: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_verb.main([word.format(own_run), "--max_videos=1"]) == 0
    printed = capsys.readouterr().out
    records = load_records(own_run / "eval" / "episodes.jsonl")
    total = f"{sum(r.success for r in records)}/{sum(r.scored for r in records)}"
    assert re.search(rf"^libero_object +{total} \(", printed, re.MULTILINE)
    assert f"report: {own_run / 'report.html'}" in printed
    assert len(Page((own_run / "report.html").read_text()).all("video")) == 1


def test_verb_refuses_a_negative_limit(own_run: Path) -> None:
    with pytest.raises(ConfigError, match="expected 0"):
        report_verb.main([str(own_run), "--max_videos=-1"])
