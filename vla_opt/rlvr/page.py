"""What a run looked like, as one page: reward, held-out answers, and the signs of a collapse."""

from pathlib import Path

from vla_opt.evaluation._html import Section, esc, page, paragraph
from vla_opt.io import atomic_write_text, read_jsonl
from vla_opt.rl.curve import diagnostic_charts

PANELS = {
    "reward": [("mean", "train/reward"), ("spread within a group", "train/reward_std")],
    "held-out questions: reward of greedy answers": [("", "eval/reward")],
    "entropy, nats per token": [("", "train/entropy")],
    "gradient: signal to noise of an update": [("", "noise/gradient_snr")],
    "gradient: norm": [("", "train/grad_norm")],
    "share of clipped tokens": [
        ("all", "train/clip_fraction"),
        ("at the lower bound", "train/clip_low"),
        ("at the upper bound", "train/clip_high"),
    ],
    "share of groups without a gradient": [("", "train/equal_groups")],
    "variance over heads of the norm of the query weights": [("", "heads/norm_variance")],
    "variance over heads of the norm of their change": [("", "heads/update_variance")],
}


def write_page(folder: Path) -> Path:
    """Write report.html of the run in a folder, from its log and its warnings."""
    charts = "".join(diagnostic_charts(read_jsonl(folder / "log.jsonl"), PANELS))
    sections = [Section(anchor="log", title="Log", body=f'<div class="charts two">{charts}</div>')]
    warnings = read_jsonl(folder / "warnings.jsonl")
    if warnings:
        told = "".join(
            paragraph(f"update {row['step']}: {row['message']}", "small") for row in warnings
        )
        sections.insert(0, Section(anchor="warnings", title="Warnings", body=told))
    name = folder.resolve().name
    path = folder / "report.html"
    footer = "Derived from log.jsonl and warnings.jsonl; no number here is typed by hand."
    atomic_write_text(path, page(f"{name} - vla_opt", f"<h1>{esc(name)}</h1>", sections, footer))
    return path
