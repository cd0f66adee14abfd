"""The results as pictures: small SVG files, the same bytes for the same numbers.

Text stays text and the background is the page's, so that they read in light and dark alike.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.machine import Json
from bench.report import quartiles

_INK: Final = "#808080"  # between black and white: seen on either
_OTHERS: Final = "#9a9a9a"  # what is not ours
_COLORS: Final = ("#3b82f6", "#d97706", "#16a34a", "#a855f7", "#db2777", "#0891b2")

mpl.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "bench",  # ids of elements are random otherwise
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
)


def write_plots(results: Json, directory: Path) -> list[Path]:
    """Write a picture for each part that has one; return the files."""
    figures: dict[str, Figure] = {}
    if start := results.get("start"):
        figures["start.svg"] = plot_start(start["seconds"])
    if memory := results.get("memory"):
        figures["memory.svg"] = plot_memory(memory)
    for name, result in results.get("waterfall", {}).items():
        figures[f"waterfall-{name}.svg"] = plot_waterfall(name, result)
    for file, figure in figures.items():
        save(figure, directory / file)
    return [directory / file for file in figures]


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    # The lines that end in spaces are matplotlib's.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def new_figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2, height), layout="constrained")
    return figure, figure.add_subplot()


def plot_start(seconds: dict[str, list[float]]) -> Figure:
    """Bars: the median; whiskers: the quartiles."""
    figure, axes = new_figure(0.6 + 0.32 * len(seconds))
    for row, (name, values) in enumerate(seconds.items()):
        middle = 1000 * median(values)
        low, high = (1000 * value for value in quartiles(values))
        color = _OTHERS if name == "runc" else _COLORS[0]
        whiskers = [[middle - low], [high - middle]]
        axes.barh(row, middle, xerr=whiskers, color=color, ecolor=_INK, height=0.6)
        axes.text(high, row, f"  {middle:.0f} ms", va="center")
    axes.set_yticks(range(len(seconds)), list(seconds))
    axes.invert_yaxis()
    axes.set_xlabel("ms from ctr run to the first 200")
    axes.margins(x=0.1)
    return figure


def plot_memory(memory: Json) -> Figure:
    figure, axes = new_figure(3.0)
    for number, (name, result) in enumerate(memory.items()):
        color = _OTHERS if name == "runc" else _COLORS[number]
        counts = [point["count"] for point in result["points"]]
        sizes = [point["total_bytes"] / 1e6 for point in result["points"]]
        axes.plot(counts, sizes, marker="o", markersize=4, color=color)
        axes.text(counts[-1], sizes[-1], f"  {name}", va="center", color=color)
    axes.set_xlabel("containers")
    axes.set_ylabel("PSS of all together, MB")
    axes.set_ylim(bottom=0)
    return figure


def plot_waterfall(name: str, result: Json) -> Figure:
    """A bar for each phase, where the medians of those before it end."""
    phases = result["phases"]
    figure, axes = new_figure(0.6 + 0.27 * len(phases))
    workers = list(dict.fromkeys(p["who"] for p in phases if not _is_other(p["who"])))
    colors = {who: _COLORS[number % len(_COLORS)] for number, who in enumerate(workers)}
    left = 0.0
    for row, phase in enumerate(phases):
        width = 1000 * median(phase["seconds"])
        color = colors.get(phase["who"], _OTHERS)
        axes.barh(row, width, left=left, color=color, height=0.7)
        left += width
        axes.text(left, row, f" {width:.1f}", va="center")
    axes.set_yticks(range(len(phases)), [f"{p['who']}: {p['what']}" for p in phases])
    axes.invert_yaxis()
    axes.set_xlabel(f"ms since ctr run, a warm start of {name}; medians")
    axes.margins(x=0.08)
    return figure


def _is_other(who: str) -> bool:
    """Whether none of a shim's processes works meanwhile."""
    return who in ("ctr, containerd", "client")
