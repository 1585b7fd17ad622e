"""What a sweep leaves behind: trials.csv, report.html with its plots, and the best trial's configuration."""

import math
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState

from experiments.configuration.files import TARGET
from experiments.pages.elements import Html, folded, heading, page, paragraph, verbatim
from experiments.pages.pictures import inline_figure
from experiments.pages.tables import Cell, table
from experiments.pages.text import csv_text
from experiments.record.run_directory import recorded_config, write_text
from experiments.sweeps.folder import trial_name
from experiments.sweeps.optuna_engine import Study
from experiments.sweeps.space import EXPERIMENT, Choice, Dimension, FloatRange, label

COLUMNS = ("number", "state", "value", "images_seen", "reason", "seconds", "run")


def write_reports(study: Study) -> list[str]:
    """Write everything and return lines that say what came out and where it lies."""
    folder = study.folder
    write_table(study)
    write_text(folder / "report.html", _page(study))
    best = study.best()
    if best is None:
        return [f"no trial finished; reasons are in {folder / 'trials.csv'}", f"report  {folder / 'report.html'}"]
    write_text(folder / "best.yaml", best_config(study, best))
    counts = ", ".join(f"{count} {state}" for state, count in _counts(study).items())
    return [
        "",
        f"{counts}; best: {trial_name(best.number)}, {study.sweep.metric} = {best.value:.6g}",
        *(f"  {key} = {label(value)}" for key, value in study.assignment(best).items()),
        f"report  {folder / 'report.html'}",
        f"best    python -m experiments.run {folder / 'best.yaml'}",
    ]


def write_table(study: Study) -> None:
    """Write ``trials.csv``, one row per trial that was begun."""
    keys = [dimension.key for dimension in study.space.dimensions]
    lines = ([row.get(key, "") for key in (*COLUMNS, *keys)] for row in _rows(study))
    write_text(study.folder / "trials.csv", csv_text([[*COLUMNS, *keys], *lines]))


def best_config(study: Study, best: FrozenTrial) -> str:
    """Return the best trial's recorded configuration as an experiment file of its own."""
    config = recorded_config(study.folder / best.user_attrs["run"])
    config |= {"name": f"{study.sweep.name}_best", "runs_dir": study.sweep.runs_dir}
    path = study.folder / "best.yaml"
    value = f"{study.sweep.metric} = {best.value!r}"
    # Sums on a CPU depend on the number of threads in their last bits.
    run = f"OMP_NUM_THREADS={best.user_attrs['threads']} python -m experiments.run {path}"
    comment = f"# {trial_name(best.number)} of the sweep {study.sweep.name}: {value}\n# {run}\n\n"
    return comment + OmegaConf.to_yaml(OmegaConf.create(config))


def _rows(study: Study) -> list[dict[str, Any]]:
    return [_row(study, trial) for trial in study.trials()]


def _row(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    row = {name: trial.user_attrs.get(name) for name in ("images_seen", "reason", "run")}
    row |= {"number": trial.number, "state": trial.state.name.lower(), "value": trial.value}
    row["seconds"] = round(trial.duration.total_seconds(), 1) if trial.duration else None
    row |= {key: label(value) for key, value in study.assignment(trial).items()}
    return {key: "" if value is None else value for key, value in row.items()}


def _counts(study: Study) -> dict[str, int]:
    states = [trial.state.name.lower() for trial in study.trials()]
    return {state: states.count(state) for state in dict.fromkeys(sorted(states))}


def _page(study: Study) -> str:
    sweep, best = study.sweep, study.best()
    counts = ", ".join(f"{count} {state}" for state, count in _counts(study).items())
    goal = f"{sweep.direction.capitalize()} the {sweep.value} {sweep.metric}, {sweep.method}."
    parts = [paragraph(f"{goal} {counts} of {study.planned} planned.")]
    if best is not None:
        parts += [
            paragraph(
                f"Best: {trial_name(best.number)}, {best.value:.6g}. Its configuration is best.yaml. The best of many "
                "trials looks better than it is: score it anew, with another seed, before it is compared.",
                kind="plain",
            ),
            heading("History"),
            _history(study),
            heading("Importance"),
            _importance(study),
            heading("Parallel coordinates"),
            _parallel(study),
        ]
    settings = folded("Sweep", verbatim((study.folder / "sweep.yaml").read_text()))
    return page(f"Sweep {sweep.name}", *parts, heading("Trials"), _table(study), settings)


def _table(study: Study) -> Html:
    best = study.best()
    own, varied = [key for key in COLUMNS if key != "run"], [dimension.key for dimension in study.space.dimensions]
    rows = []
    for row in _rows(study):
        kind = "good" if best is not None and row["number"] == best.number else ""
        rows.append([Cell(_text(row.get(key, "")), kind) for key in (*own, *varied)])
    return table([*(key.replace("_", " ") for key in own), *varied], rows, "words")


def _text(value: Any) -> str:
    try:
        return f"{float(value):.4g}" if not isinstance(value, int) and "." in str(value) else str(value)
    except ValueError:
        return str(value)


def _valued(study: Study, state: TrialState) -> list[tuple[FrozenTrial, float]]:
    return [(trial, trial.value) for trial in study.trials() if trial.state == state and trial.value is not None]


def _scale(values: list[float]) -> str:
    return "log" if min(values) > 0 and max(values) > 10 * min(values) else "linear"


def _history(study: Study) -> Html:
    """Return the value of every trial, the best so far, and where trials failed."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    numbers = [trial.number for trial, _ in _valued(study, TrialState.COMPLETE)]
    values = [value for _, value in _valued(study, TrialState.COMPLETE)]
    axes.plot(numbers, values, "o", label="finished")
    better = min if study.sweep.direction == "minimize" else max
    best = [better(values[: i + 1]) for i in range(len(values))]
    axes.step(numbers, best, where="post", label="best so far")
    pruned = _valued(study, TrialState.PRUNED)
    if pruned:
        axes.plot([trial.number for trial, _ in pruned], [value for _, value in pruned], "x", label="pruned, its last")
    failed = [trial.number for trial in study.trials() if trial.state == TrialState.FAIL]
    if failed:  # on the lower border: they have no value
        axes.plot(failed, [0.02] * len(failed), "v", transform=axes.get_xaxis_transform(), color="0.4", label="failed")
    axes.set(xlabel="trial", ylabel=study.sweep.metric, yscale=_scale(values))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return inline_figure(figure)


def _importance(study: Study) -> Html:
    """Return how much each key matters for being among the best trials (PED-ANOVA, Watanabe 2023)."""
    importances = study.importances()
    if not importances:
        return paragraph("Too few finished trials to tell.")
    figure = Figure(figsize=(9, 0.8 + 0.4 * len(importances)), layout="constrained")
    axes = figure.subplots()
    keys = list(reversed(importances))
    bars = axes.barh(keys, [importances[key] for key in keys])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlabel="share of what separates the best trials from the others", xlim=(0, 1.1))
    return inline_figure(figure)


def _parallel(study: Study) -> Html:
    """Return one line per finished trial through its values, coloured by its score; dotted past keys without part."""
    finished = _valued(study, TrialState.COMPLETE)
    dimensions, values = study.space.dimensions, [value for _, value in finished]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    norm = (LogNorm if _scale(values) == "log" else Normalize)(min(values), max(values))
    colours = colormaps["viridis" if study.sweep.direction == "minimize" else "viridis_r"]
    for trial, value in sorted(finished, key=lambda pair: pair[1], reverse=study.sweep.direction == "minimize"):
        heights = [_height(dimension, trial.params.get(dimension.key)) for dimension in dimensions]
        colour, there = colours(norm(value)), [i for i, height in enumerate(heights) if not math.isnan(height)]
        axes.plot(there, [heights[i] for i in there], ":", color=colour, linewidth=0.8, alpha=0.8)
        axes.plot(heights, color=colour, marker="o", markersize=4, alpha=0.8)
    for position, dimension in enumerate(dimensions):
        _ticks(axes, position, dimension)
    axes.set(xlim=(-0.2, len(dimensions) - 0.4), ylim=(-0.05, 1.05), yticks=[])
    axes.set_xticks(range(len(dimensions)), [dimension.key for dimension in dimensions])
    axes.spines[["left", "right", "top", "bottom"]].set_visible(False)
    figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=study.sweep.metric, pad=0.01)
    return inline_figure(figure)


def _height(dimension: Dimension, value: Any) -> float:
    """Return where on its axis a value stands, 0 to 1; NaN, a gap, if it takes no part."""
    domain = dimension.domain
    if value is None:
        return math.nan
    if isinstance(domain, Choice):
        return (list(map(label, domain.values)).index(str(value)) + 0.5) / len(domain.values)
    low, high = float(domain.low), float(domain.high)
    if isinstance(domain, FloatRange) and domain.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _ticks(axes: Axes, position: int, dimension: Dimension) -> None:
    """Draw the axis of a dimension with its ends, or its choices, beside it."""
    domain = dimension.domain
    axes.axvline(position, color="0.7", linewidth=1, zorder=0)
    names = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
    for name in names:
        value = label(name) if isinstance(domain, Choice) else name
        text = f"{name:.3g}" if isinstance(name, float) else _short(dimension.key, label(name))
        place = (position, _height(dimension, value))
        white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
        axes.annotate(text, place, (5, 0), textcoords="offset points", fontsize=8, va="center", bbox=white)


def _short(key: str, text: str) -> str:
    """Return of a class its name, of a file its stem, of anything else the beginning."""
    if key.endswith(TARGET):
        return text.rpartition(".")[2]
    return Path(text).stem if key == EXPERIMENT else text[:24]
