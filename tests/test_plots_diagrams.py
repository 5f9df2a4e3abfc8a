"""The diagrams: nothing lies over a text, every text fits into its box, and arrows lead from box to box."""

import itertools

import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from plot_examples import example, panels

DIAGRAMS = pytest.mark.parametrize("name", ["ppo_data_flow", "lora_block"])


def parts(name):
    """Boxes, corners of the arrows' lines and texts, each in inches of the axes."""
    (axes,) = panels(example(name))
    boxes = [shape.get_bbox() for shape in axes.patches if isinstance(shape, FancyBboxPatch)]
    arrows = [shape._path_original.vertices for shape in axes.patches if isinstance(shape, FancyArrowPatch)]
    to_data = axes.transData.inverted()
    texts = {text: text.get_window_extent().transformed(to_data) for text in axes.texts}
    assert boxes and arrows and texts
    return boxes, arrows, texts


def inside(inner, outer) -> bool:
    return outer.x0 < inner.x0 and outer.y0 < inner.y0 and inner.x1 < outer.x1 and inner.y1 < outer.y1


@DIAGRAMS
def test_no_text_overlaps_another_and_each_lies_inside_or_outside_of_every_box(name):
    boxes, _, texts = parts(name)
    assert [pair for pair in itertools.combinations(texts, 2) if texts[pair[0]].overlaps(texts[pair[1]])] == []
    for text, extent in texts.items():
        assert all(inside(extent, box) or not extent.overlaps(box) for box in boxes), text.get_text()


@DIAGRAMS
def test_no_arrow_crosses_a_text_or_a_box(name):
    boxes, arrows, texts = parts(name)
    for corners in arrows:
        steps = np.linspace(corners[:-1], corners[1:], 200).reshape(-1, 2)
        for extent in (*texts.values(), *boxes):
            x, y = steps.T
            within = (extent.x0 < x) & (x < extent.x1) & (extent.y0 < y) & (y < extent.y1)
            assert not within.any()


@DIAGRAMS
def test_every_arrow_ends_at_a_box_and_starts_at_one_or_on_another_arrow(name):
    boxes, arrows, _ = parts(name)

    def at_a_box(x, y):
        return any(
            (np.isclose([x - box.x0, x - box.x1], 0).any() and box.y0 <= y <= box.y1)
            or (np.isclose([y - box.y0, y - box.y1], 0).any() and box.x0 <= x <= box.x1)
            for box in boxes
        )

    def on_a_line(x, y):
        return any(
            np.isclose([(x - a) * (d - b) - (y - b) * (c - a)], 0).all()
            and min(a, c) <= x <= max(a, c)
            and min(b, d) <= y <= max(b, d)
            for corners in arrows
            for (a, b), (c, d) in itertools.pairwise(corners)
            if not np.allclose(corners[0], (x, y))
        )

    for corners in arrows:
        assert at_a_box(*corners[-1])
        assert at_a_box(*corners[0]) or on_a_line(*corners[0])


def test_data_flow_names_every_model_and_what_flows():
    words = " ".join(text.get_text() for text in panels(example("ppo_data_flow"))[0].texts)
    for word in ("prompts", "policy", "reference", "reward model", "value model", "answers", "score", "KL penalty"):
        assert word in words
    assert words.count("frozen") == words.count("trained") == 2


def test_lora_block_marks_what_is_trained_by_a_thicker_edge():
    (axes,) = panels(example("lora_block"))
    boxes = [shape for shape in axes.patches if isinstance(shape, FancyBboxPatch)]
    thick = {text.get_text()[:3] for box, text in zip(boxes, axes.texts, strict=False) if box.get_linewidth() > 2}
    assert thick == {"$A$", "$B$"}
