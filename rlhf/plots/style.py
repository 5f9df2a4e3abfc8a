"""What all figures share: colours and labels, matplotlib's settings, the check of the frames, and parts of axes."""

import functools
import inspect
import io
import textwrap

from rlhf.registry import MODELS

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import AutoLocator, MaxNLocator
from PIL import Image

# Okabe and Ito's palette, which colour-blind readers can tell apart.
GREY, BLACK = "#8C8C8C", "#222222"
BLUE, SKY, GREEN, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#CC79A7"
VERMILION, ORANGE = "#D55E00", "#E69F00"

# Colour, marker and label by name, the models' from the registry; the order here is the order in every figure.
SERIES = {key: (model.colour, model.marker, model.label) for key, model in MODELS.items()} | {
    "ppo_half": (GREEN, "P", "PPO (half the pairs)"),
    "ppo_seed_0": (VERMILION, "^", "PPO, seed 0"),
    "ppo_seed_1": (BLUE, "D", "PPO, seed 1"),
    "ppo_seed_2": (GREEN, "s", "PPO, seed 2"),
    "ppo_collapsed": (BLACK, "X", "collapsed"),
    "lora": (GREEN, "P", "LoRA"),
    "qlora": (SKY, "s", "QLoRA"),
    "full": (BLUE, "D", "full"),
    "prompt": (GREY, "o", "prompt"),
    "chosen": (GREEN, "s", "chosen"),
    "rejected": (PURPLE, "D", "rejected"),
    "eos": (GREEN, "o", "EOS"),
    "none": (PURPLE, "s", "no EOS"),
    "pad_is_eos": (ORANGE, "D", "pad = EOS"),
    "proxy": (VERMILION, "^", "proxy reward"),
    "judge": (PURPLE, "s", "second judge"),
    "gold": (BLUE, "D", "gold score"),
    "blind": (ORANGE, "v", "blind reward model"),
    "seeing": (GREEN, "o", "seeing reward model"),
    "corpus": (BLACK, "o", "pairs of the corpus"),
    "on_policy": (BLUE, "D", "SFT's answers"),
    "both": (GREEN, "P", "half of each"),
    "active": (VERMILION, "^", "SFT's, chosen"),
    "best_of_n": (GREY, "*", "best of n"),
    "eighth": (SKY, "v", "1/8 of pairs"),
    "quarter": (BLUE, "P", "1/4 of pairs"),
    "half": (PURPLE, "X", "1/2 of pairs"),
    "single": (BLACK, "o", "single reward model"),
    "mean": (BLUE, "s", "mean of three"),
    "worst_case": (VERMILION, "v", "worst case of three"),
    "uncertainty_weighted": (GREEN, "D", "uncertainty-weighted"),
}
SPARE_COLOURS, SPARE_MARKERS = (GREEN, PURPLE, BLACK, ORANGE), "PXdp"
METRICS = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "gold": "gold score",
    "kl": "KL (nats per answer)",
    "win_rate_vs_sft": "win rate against SFT",
}
SHARES = (-0.03, 1.03)  # the whole axis: on a part of it, one answer in a hundred looks like a collapse

WIDTH = 7  # inches
STYLE = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "figure.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


class PaletteCanvas(FigureCanvasAgg):
    def print_png(self, target, **_) -> None:
        """Write a PNG with a palette: a third of the bytes, and no colour visibly changed."""
        self.draw()
        image = Image.fromarray(np.asarray(self.buffer_rgba())).convert("RGB")
        image = image.quantize(128, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        image.save(target, format="png", optimize=True)


class NotebookFigure(Figure):
    """A figure that a notebook shows as the value of a cell, and only there: pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def draws(*columns: str):
    """Decorator: the function draws in STYLE, whatever matplotlib is set to, once its frames are checked.

    columns: the columns that the function's first arguments, its frames, must have, as one string for each frame.
    Every ValueError names the figure: that of a missing column, of a frame without rows, and the function's own.
    """

    def decorate(draw):
        @functools.wraps(draw)
        def drawn(*args, **kwargs) -> Figure:
            frames = inspect.signature(draw).bind(*args, **kwargs).arguments.values()
            try:
                for frame, needed in zip(frames, columns, strict=False):
                    check(frame, needed)
                with matplotlib.style.context(["default", STYLE]):
                    return _fixed(draw(*args, **kwargs))
            except ValueError as error:
                raise ValueError(f"figure {draw.__name__}: {error}") from error

        return drawn

    return decorate


def check(frame: pd.DataFrame, columns: str = "") -> pd.DataFrame:
    """The frame, or ValueError where it lacks one of the columns or has no rows."""
    for column in columns.split():
        if column not in frame.columns:
            raise ValueError(f"column {column!r} not in the frame (found: {list(frame.columns)}); it needs: {columns}.")
    if frame.empty:
        raise ValueError("the frame has no rows to draw; run the cell that fills its CSV first.")
    return frame


def _fixed(figure: Figure) -> Figure:
    """The figure with its ticks and layout, which matplotlib would choose anew each time that it is saved."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_locator(), AutoLocator):
            ticks(axis, 7)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def new_figure(title: str, height: float) -> NotebookFigure:
    """A figure of WIDTH by `height` inches with its title and no axes."""
    figure = NotebookFigure(figsize=(WIDTH, height))
    PaletteCanvas(figure)  # is from now on the figure's canvas
    figure.suptitle(textwrap.fill(title, 78), x=0.015, ha="left")
    return figure


def new_panels(title: str, height: float, rows: int = 1, columns: int = 1, **kwargs):
    """A figure with its title and an array of axes, (rows * columns,)."""
    figure = new_figure(title, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs).ravel()


def label(axes, x: str, y: str, title: str = "") -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title)


def legend(figure, handles: list | None = None, columns: int = 5) -> Figure:
    """The figure with one legend for all panels, below them: never over the data."""
    if handles is None:
        found = [axes.get_legend_handles_labels() for axes in figure.axes]
        handles = list({text: handle for pair in found for handle, text in zip(*pair, strict=True)}.values())
    figure.legend(handles=handles, loc="outside lower center", borderaxespad=0.2, ncols=min(columns, len(handles)))
    return figure


def series_of(names) -> dict[str, dict]:
    """Colour, marker and label of each name: known ones in their order, then the others with the next colour."""
    names = list(dict.fromkeys(names))
    found = {name: SERIES[name] for name in SERIES if name in names}
    spare = [colour for colour in SPARE_COLOURS if colour not in {known for known, *_ in found.values()}]
    for i, name in enumerate(name for name in names if name not in SERIES):
        found[name] = (spare[i % len(spare)], SPARE_MARKERS[i % len(SPARE_MARKERS)], words(name))
    return {name: dict(zip(("color", "marker", "label"), values, strict=True)) for name, values in found.items()}


def each_series(frame: pd.DataFrame, column: str) -> list[tuple[pd.DataFrame, dict]]:
    """The rows of each name in a column, with its colour, marker and label."""
    return [(frame[frame[column] == name], style) for name, style in series_of(frame[column]).items()]


def words(name: str) -> str:
    """What a reader calls a metric, an error or a run; `_sample` marks a metric of sampled answers."""
    name, sampled, _ = name.partition("_sample")
    return METRICS.get(name, name.replace("_", " ")) + (", sampled" if sampled else "")


def points(axes, places, rows: pd.DataFrame, column: str = "mean", across: bool = False, **style) -> None:
    """Points with their 95 % intervals over `places`; `across` lays them along the horizontal axis."""
    ends = rows[["ci_low", "ci_high"]].to_numpy(dtype=float).T
    errors = np.abs(ends - rows[column].to_numpy(dtype=float))  # rounding in a CSV may make one negative
    x, y, bars = (rows[column], places, "xerr") if across else (places, rows[column], "yerr")
    axes.errorbar(x, y, **({bars: errors, "linestyle": "none", "capsize": 2.5, "elinewidth": 1.4} | style))


def offsets(count: int, width: float = 0.6) -> np.ndarray:
    """Where `count` points stand around a tick at 0, side by side."""
    return (np.arange(count) - (count - 1) / 2) * width / max(count, 2)


@functools.cache
def _drawable() -> frozenset[int]:
    """The characters, by number, that the font of the figures has."""
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def as_label(text: str) -> str:
    """The text with an escape, as Python writes it, for each character that the font lacks or that has no shape."""
    plain = (c if c.isprintable() and ord(c) in _drawable() else ascii(c)[1:-1] for c in text)
    return "".join(plain)


def name_rows(axes, names: list[str]) -> None:
    """Names down the vertical axis, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    ticks(axes.xaxis, 5)


def bin_width(edges) -> float:
    """The widest bin on whose grid all left edges lie (Euclid's algorithm); 1 for a single edge."""
    edges = np.unique(edges)
    gaps = np.diff(edges)
    if not len(gaps):
        return 1.0
    width, tolerance = gaps[0], gaps.min() * 1e-3
    for gap in gaps[1:]:
        while gap > tolerance:
            width, gap = gap, width % gap
    span = edges[-1] - edges[0]
    return float(span / round(span / width))  # without the rounding of the single edges


def bins(rows: pd.DataFrame, column: str, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges of a histogram whose CSV leaves out the empty bins."""
    low = rows[column].min()
    counts = np.bincount(np.rint((rows[column] - low) / width).astype(int), weights=rows["count"])
    return counts, low + width * np.arange(len(counts) + 1)


def zero_line(axes) -> None:
    axes.axvline(0, color=BLACK, linewidth=1, zorder=1.5)


def ticks(axis, count: int, integer: bool = False) -> None:
    """At most `count` intervals between round numbers."""
    axis.set_major_locator(MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=integer))
