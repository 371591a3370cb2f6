"""``vla-opt spectra CHECKPOINT|RUN``: spectra of the momenta, and what their maps let through."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HELP = "show each layer's spectrum: gradient, momentum and update, energy, directions passed"


@dataclass(frozen=True, kw_only=True)
class SpectraConfig:
    """Look at the optimizer state of a checkpoint, as `vla-opt spectra PATH` too.

    Attributes:
        path: A checkpoint of ours or of lerobot's, or a run folder.
        curves: Write instead a picture (SVG) of what the maps let through; needs no checkpoint.
        step: Which checkpoint of a run; the newest if not given.
        layers: Only layers whose name matches this regular expression.
        out: Where to write the page; spectra.html in the current folder by default.
    """

    path: Path | None = None
    curves: Path | None = None
    step: int | None = None
    layers: str = ""
    out: Path = Path("spectra.html")


def main(argv: Sequence[str]) -> int:
    """Print the tables and write the page; the path may be given as the first word."""
    import re

    from vla_opt._optimizer_state import find_checkpoint, read_optimizer_state
    from vla_opt._spectra_page import spectra_page
    from vla_opt.cli._config import parse
    from vla_opt.errors import ConfigError
    from vla_opt.spectra import (
        layer_spectra,
        logged_layers,
        reading_table,
        table,
        what_if,
        what_if_table,
    )

    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = f"--path={words[0]}"
    config = parse(SpectraConfig, words)
    if config.curves is not None:
        return _draw_curves(config.curves)
    if config.path is None:
        raise ConfigError("expected a checkpoint or a run: vla-opt spectra PATH")
    checkpoint = find_checkpoint(config.path, config.step)
    try:
        wanted = re.compile(config.layers)
    except re.error as error:
        raise ConfigError(f"--layers={config.layers} is no regular expression: {error}") from error
    stored = [p for p in read_optimizer_state(checkpoint) if wanted.search(p.name)]
    layers = layer_spectra(stored)
    if not layers:
        raise ConfigError(f"{checkpoint}: no matrix with a momentum matches '{config.layers}'.")
    answers = what_if(layers)
    print(f"checkpoint: {checkpoint}\n")
    print(table(layers))
    print("\nWhat high-pass Pion would let through of these momenta:\n")
    print(what_if_table(answers))
    logged = _logged(checkpoint)
    readings = [
        reading
        for reading in logged_layers(logged, _step_of(checkpoint))
        if wanted.search(reading.name)
    ]
    if readings:
        print("\nAs the run logged them: energy of the top direction, and stable rank, of\n")
        print(reading_table(readings))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    page = spectra_page(str(checkpoint), layers, answers, readings, logged)
    config.out.write_text(page, encoding="utf-8")
    print(f"\npage: {config.out}")
    return 0


def _draw_curves(path: Path) -> int:
    from vla_opt._spectra_picture import dead_zone_picture

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dead_zone_picture(), encoding="utf-8")
    print(f"picture: {path}")
    return 0


def _step_of(checkpoint: Path) -> int | None:
    return int(checkpoint.name) if checkpoint.name.isdigit() else None


def _logged(checkpoint: Path) -> list[dict[str, object]]:
    """Spectra that the run wrote while it trained; they include gradients' share in Nesterov."""
    from vla_opt.io import read_jsonl

    log = checkpoint.parent.parent / "log.jsonl"
    return [row for row in read_jsonl(log) if row.get("kind") == "spectra"] if log.exists() else []
