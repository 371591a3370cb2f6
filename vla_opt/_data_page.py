"""The page of `vla-opt data inspect`: what a data set holds, in one file that needs no network."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs._video import encode_mp4, side_by_side
from vla_opt._data_contract import names_of, numbers_of
from vla_opt._lerobot_read import CAMERA_PREFIX, DatasetFiles
from vla_opt._stats import QUANTILES, exact_stats
from vla_opt.contracts import Finding
from vla_opt.evaluation._charts import Point, Series, line_chart, number
from vla_opt.evaluation._html import Section, esc, facts, page, paragraph, table
from vla_opt.importing._pictures import resized

_BINS = 40
_MOMENTS = 3  # pictures per episode: its beginning, middle and end
_COLOURS = {"match": "good", "warning": "warn", "differs": "bad", "unknown": "soft"}


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """One episode to look at: instruction, and camera -> (T, H, W, 3)."""

    index: int
    task: str
    views: dict[str, NDArray[np.uint8]]


def dataset_page(files: DatasetFiles, findings: Sequence[Finding], *, episodes: int = 3) -> str:
    """The page as HTML.

    Args:
        files: The data set.
        findings: Of `validate_dataset`.
        episodes: So many of the first episodes are shown.

    Raises:
        DataError: A file is missing or damaged.
    """
    numbers = numbers_of(files)
    samples = _samples(files, episodes)
    sections = [
        Section(anchor="overview", title="Overview", body=_overview(files)),
        Section(anchor="checks", title="Checks", body=_checks(findings)),
        Section(anchor="episodes", title="Episodes", body=_episodes(files, samples)),
        *(
            Section(anchor=_anchor(name), title=name, body=_feature(files, name, values))
            for name, values in numbers.items()
        ),
    ]
    header = f"<h1>{esc(files.root.name)}</h1>{paragraph('LeRobotDataset v3', 'soft')}"
    return page(files.root.name, header, sections, esc(str(files.root)))


def histogram(values: NDArray[Any], bins: int = _BINS) -> list[Point]:
    """The outline of a histogram: corners of the bars' tops, shares of all values.

    >>> histogram(np.array([0.0, 0.0, 1.0, 1.0]), bins=2)
    [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 0.5), (1.0, 0.5), (1.0, 0.0)]
    """
    counts, edges = np.histogram(np.asarray(values, np.float64), bins=bins)
    shares = counts / max(1, counts.sum())
    points: list[Point] = [(float(edges[0]), 0.0)]
    for left, right, share in zip(edges, edges[1:], shares, strict=False):
        points += [(float(left), float(share)), (float(right), float(share))]
    return [*points, (float(edges[-1]), 0.0)]


def _overview(files: DatasetFiles) -> str:
    lengths = [episode.length for episode in files.episodes]
    task_of = files.columns(["episode_index", "task_index"])
    first = np.unique(task_of["episode_index"], return_index=True)[1]
    per_task = np.bincount(task_of["task_index"][first], minlength=len(files.tasks))
    cameras = ", ".join(
        f"{key.removeprefix(CAMERA_PREFIX)} {'x'.join(map(str, files.image_size(key)))}"
        for key in files.camera_keys
    )
    pairs = [
        ("Episodes", len(lengths)),
        ("Frames", f"{sum(lengths)} at {files.fps} Hz, {sum(lengths) / files.fps / 60:.1f} min"),
        ("Cameras", cameras or "none"),
        ("Robot", files.info.get("robot_type") or "not said"),
        ("Format", files.info["codebase_version"]),
    ]
    rows = [(esc(task), str(n)) for task, n in zip(files.tasks, per_task, strict=True)]
    return facts(pairs) + table(("Instruction", "Episodes"), rows, numeric=(1,))


def _checks(findings: Sequence[Finding]) -> str:
    rows = [
        (
            f'<span class="chip {_COLOURS[f.verdict]}">{esc(f.verdict)}</span>',
            esc(f.item),
            esc(f.ours),
            esc(f.theirs),
            esc(f.remedy),
        )
        for f in findings
    ]
    return table(("", "Check", "Found", "Expected", "What to do"), rows, anchor="checks-table")


def _episodes(files: DatasetFiles, samples: Sequence[_Sample]) -> str:
    lengths = np.array([episode.length for episode in files.episodes], np.float64)
    chart = line_chart(
        "Share of episodes",
        [Series(name="", points=histogram(lengths, min(_BINS, len(lengths))))],
        x_label="frames",
    )
    shown = "".join(_figure(files, sample) for sample in samples)
    return f'<div class="charts two">{chart}</div><div class="videos">{shown}</div>'


def _figure(files: DatasetFiles, sample: _Sample) -> str:
    """A video of all views beside each other, and three moments as pictures."""
    length = len(next(iter(sample.views.values())))
    height = max(film.shape[1] for film in sample.views.values())
    films = [resized(f, height, height * f.shape[2] // f.shape[1]) for f in sample.views.values()]
    rows = [side_by_side([film[t] for film in films]) for t in range(length)]
    film = base64.b64encode(encode_mp4(rows, Fraction(files.fps))).decode()
    moments = sorted({round(m) for m in np.linspace(0, length - 1, _MOMENTS)})
    stills = "".join(_still(rows[t]) for t in moments)
    return (
        f'<figure><video controls muted preload="metadata" '
        f'src="data:video/mp4;base64,{film}"></video>{stills}'
        f"<figcaption>Episode {sample.index}: {esc(sample.task)}, {length} frames</figcaption>"
        "</figure>"
    )


def _still(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="" style="width:100%" src="data:image/jpeg;base64,{data}">'


def _samples(files: DatasetFiles, count: int) -> list[_Sample]:
    table_of = files.columns(["episode_index", "task_index"])
    cameras = {key.removeprefix(CAMERA_PREFIX): key for key in files.camera_keys}
    films = {
        name: list(itertools.islice(files.pictures(key), count)) for name, key in cameras.items()
    }
    samples = []
    for place, episode in enumerate(files.episodes[: count if films else 0]):
        task = int(table_of["task_index"][episode.start])
        views = {name: film[place] for name, film in films.items()}
        samples.append(_Sample(index=episode.index, task=files.tasks[task], views=views))
    return samples


def _feature(files: DatasetFiles, name: str, values: NDArray[Any]) -> str:
    """Statistics and a histogram per dimension; values that are not finite are left out."""
    names = names_of(files, name)
    kept = values[np.isfinite(values).all(axis=1)]
    if len(kept) == 0:
        return paragraph("No row is finite.", "soft")
    stats = exact_stats(kept)
    keys = ("mean", "std", "min", *QUANTILES, "max")
    rows = [
        (esc(label), *(number(float(stats[key][d])) for key in keys))
        for d, label in enumerate(names)
    ]
    charts = "".join(
        line_chart(label, [Series(name="", points=histogram(kept[:, d]))], x_label="value")
        for d, label in enumerate(names)
    )
    return (
        table(("Dimension", *keys), rows, numeric=range(1, len(keys) + 1))
        + f'<div class="charts">{charts}</div>'
    )


def _anchor(name: str) -> str:
    return name.replace(".", "-")
