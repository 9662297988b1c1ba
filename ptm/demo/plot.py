"""The forest plot: odds ratios with 95 % confidence intervals on a logarithmic axis, as a PNG.

Drawn with matplotlib's Agg canvas through its object interface: no display, no pyplot, no global state. matplotlib takes a
while to import, so nothing else imports this module before it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ptm.demo.logistic import Fit
from ptm.demo.table import ratio_text

INK, ACCENT, GREY = "#1f2933", "#0b6e8a", "#7b8794"
DPI = 160


def forest_plot(fit: Fit, labels: Mapping[str, str], title: str, path: Path) -> None:
    """Draw `fit` into the PNG file `path`. `labels` tells what to call a covariate; `title` is its first line."""
    count = len(fit.model.covariates)
    figure = Figure(figsize=(9, 2.3 + 0.55 * count), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.17, 1.05 / (2.3 + 0.55 * count), 0.55, 0.55 * count / (2.3 + 0.55 * count)))
    _draw_estimates(axes, fit, labels)
    _draw_axis(axes, count)
    _write_heading(figure, fit, title)
    figure.savefig(path, format="png")


def _draw_estimates(axes: Axes, fit: Fit, labels: Mapping[str, str]) -> None:
    low, high = fit.interval
    axes.axvline(1.0, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for y, name in enumerate(fit.model.covariates):
        axes.plot([low[y], high[y]], [y, y], color=ACCENT, linewidth=2, solid_capstyle="butt", zorder=2)
        axes.plot([fit.odds_ratio[y]], [y], marker="s", markersize=8, color=ACCENT, linestyle="none", zorder=3)
        side = axes.get_yaxis_transform()
        axes.text(-0.04, y, labels.get(name, name), transform=side, ha="right", va="center", fontsize=11, color=INK)
        axes.text(1.06, y, ratio_text(fit, y), transform=side, ha="left", va="center", fontsize=11, color=INK)
    axes.text(1.06, -0.85, "OR (95 % CI)", transform=axes.get_yaxis_transform(), fontsize=10, va="center", color=GREY)
    reach_low, reach_high = min(0.8, float(low.min())), max(1.25, float(high.max()))
    axes.set_xlim(reach_low / 1.15, reach_high * 1.15)


def _draw_axis(axes: Axes, count: int) -> None:
    axes.set_xscale("log")
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", colors=INK, labelsize=10)
    axes.set_xlabel("Odds ratio per standard deviation (log scale)", fontsize=10, color=INK)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)


def _write_heading(figure: Figure, fit: Fit, title: str) -> None:
    height = figure.get_figheight()
    sites = ", ".join(f"{site} n = {n}" for site, n in fit.n.items())
    total = sum(fit.n.values())
    figure.text(0.03, 1 - 0.38 / height, title, fontsize=14, fontweight="bold", color=INK, va="center")
    text = f"{sites}  ·  together n = {total}, {fit.events} events"
    figure.text(0.03, 1 - 0.70 / height, text, fontsize=10.5, color=INK, va="center")
    note = f"Federated logistic regression, {fit.rounds} Newton rounds; no patient's row left its hospital"
    figure.text(0.03, 0.2 / height, note, fontsize=8.5, color=GREY, va="center")
