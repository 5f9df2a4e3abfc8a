"""Diagrams: what flows through one update of PPO, and through a LoRA block. They show no data."""

from rlhf.plots import style

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

# Fill and width of the edge; in grey, what is trained is told from what is frozen by its edge and its text.
KINDS = {"trained": ("#CFE5F3", 2.2), "frozen": ("#E9E9E9", 1.0), "step": ("white", 1.0)}


@style.draws()
def ppo_data_flow() -> Figure:
    """One update of PPO, from prompts at the top to the gradient steps at the bottom."""
    figure, axes = _canvas("One update of PPO: what flows between the models", 6.6)
    left, right = 0.7, 6.3
    _box(axes, "prompts", (2.8, 5.6, 4.2, 5.95), "step")
    _box(axes, "policy $\\pi$: writes answers (trained)", (left, 4.55, right, 5.0), "trained")
    _box(axes, "reference $\\pi_{\\mathrm{ref}}$\n(frozen)", (left, 3.2, 2.3, 3.85), "frozen")
    _box(axes, "reward model\n(frozen)", (2.6, 3.2, 4.2, 3.85), "frozen")
    _box(axes, "value model\n(trained)", (4.5, 3.2, right, 3.85), "trained")
    _box(axes, "reward of each token: KL penalty,\nand the score on the last token", (left, 2.0, 4.2, 2.65), "step")
    _box(axes, "advantages: rewards still to come, minus the baseline", (left, 1.0, right, 1.4), "step")
    _box(axes, "clipped update: a few gradient steps", (left, 0, right, 0.4), "step")
    _arrow(axes, [(3.5, 5.6), (3.5, 5.0)], "a batch")
    for x in (1.2, 3.1, 5.2):
        _arrow(axes, [(x, 4.55), (x, 3.85)], "answers")
    _arrow(axes, [(1.2, 3.2), (1.2, 2.65)], "$\\log\\,\\pi_{\\mathrm{ref}}$")
    _arrow(axes, [(3.1, 3.2), (3.1, 2.65)], "score")
    _arrow(axes, [(5.2, 3.2), (5.2, 1.4)], "values:\nthe baseline")
    _arrow(axes, [(2.4, 2.0), (2.4, 1.4)], "rewards")
    _arrow(axes, [(3.5, 1.0), (3.5, 0.4)], "advantages")
    _arrow(axes, [(left, 4.78), (0.3, 4.78), (0.3, 0.2), (left, 0.2)])
    _arrow(axes, [(0.3, 2.32), (left, 2.32)])
    axes.text(0.15, 3.4, "$\\log\\,\\pi$ of the answers", rotation=90, ha="center", va="center")
    _arrow(axes, [(right, 0.2), (6.7, 0.2), (6.7, 4.78), (right, 4.78)])
    _arrow(axes, [(6.7, 3.52), (right, 3.52)])
    axes.text(6.87, 2.4, "new weights", rotation=90, ha="center", va="center")
    return figure


@style.draws()
def lora_block() -> Figure:
    """A frozen matrix with its low-rank update: both read the input, and their results are added."""
    figure, axes = _canvas("A LoRA block: the frozen matrix, and beside it the update that is trained", 2.7)
    _box(axes, "$x$", (0.05, 0.8, 0.5, 1.2), "step")
    _box(axes, "$W$: $d \\times k$, frozen", (1.35, 1.4, 5.6, 1.9), "frozen")
    _box(axes, "$A$: $r \\times k$,\ntrained", (1.35, 0.05, 2.35, 0.7), "trained")
    _box(axes, "$B$: $d \\times r$, trained,\nstarts at 0", (2.8, 0.05, 4.5, 0.7), "trained")
    _box(axes, "$\\times\\, \\alpha\\, /\\, r$", (4.9, 0.15, 5.6, 0.6), "step")
    _box(axes, "+", (5.85, 0.8, 6.25, 1.2), "step")
    _box(axes, "$W'x$", (6.5, 0.8, 6.95, 1.2), "step")
    for y in (1.65, 0.375):
        _arrow(axes, [(0.5, 1), (0.8, 1), (0.8, y), (1.35, y)])
        end = 1.2 if y > 1 else 0.8
        _arrow(axes, [(5.6, y), (6.05, y), (6.05, end)])
    for x0, x1 in ((2.35, 2.8), (4.5, 4.9)):
        _arrow(axes, [(x0, 0.375), (x1, 0.375)])
    _arrow(axes, [(6.25, 1), (6.5, 1)])
    for x, y, size in ((1.05, 1.8, "k"), (1.05, 0.53, "k"), (2.55, 0.53, "r"), (4.67, 0.53, "d"), (5.85, 1.8, "d")):
        axes.text(x, y, f"${size}$", ha="center", va="center")
    return figure


def _canvas(title: str, height: float) -> tuple[Figure, Axes]:
    """A figure with one axes that shows nothing of itself, in inches from its lower left corner."""
    figure = style.new_figure(title, height)
    axes = figure.add_subplot()
    axes.set(xlim=(0, style.WIDTH), ylim=(-0.05, height - 0.6), aspect="equal", xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure, axes


def _box(axes: Axes, text: str, corners: tuple[float, float, float, float], kind: str) -> None:
    """A box from (x0, y0) to (x1, y1) with its text in the middle."""
    x0, y0, x1, y1 = corners
    fill, width = KINDS[kind]
    shape = FancyBboxPatch((x0, y0), x1 - x0, y1 - y0, "round,pad=0,rounding_size=0.07")
    shape.set(facecolor=fill, edgecolor=style.BLACK, linewidth=width)
    axes.add_patch(shape)
    axes.text((x0 + x1) / 2, (y0 + y1) / 2, text, ha="center", va="center", linespacing=1.3)


def _arrow(axes: Axes, points: list[tuple[float, float]], text: str = "") -> None:
    """A line through the points with its head at the last one; what flows stands right of the middle of a short one."""
    head = FancyArrowPatch(path=Path(points), arrowstyle="-|>", mutation_scale=12, linewidth=1.4, color=style.BLACK)
    axes.add_patch(head)
    if text:
        (x, y0), (_, y1) = points[0], points[-1]
        axes.text(x + 0.1, (y0 + y1) / 2, text, ha="left", va="center")
