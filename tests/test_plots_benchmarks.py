"""The figures of the benchmarks show the numbers of their frames."""

import numpy as np
from plot_examples import EXAMPLES, draw, example, intervals, panels


def test_ratios_stand_at_their_stage_with_their_range():
    (frame,) = EXAMPLES["benchmark_ratios"]
    (axes,) = panels(example("benchmark_ratios"))
    shown = intervals(axes)
    assert set(shown) == {"published recipe", "TRL's defaults"}
    ratio, place, ends = shown["published recipe"]
    rows = frame[frame.way == "published"]
    np.testing.assert_allclose(ratio, rows.ratio)
    np.testing.assert_allclose(place.round(), range(3))
    assert [text.get_text() for text in axes.get_yticklabels()] == list(frame.stage.unique())
    assert len(ends) == 3


def test_growth_is_logarithmic_names_its_exponents_and_leaves_reckoned_points_hollow():
    axes = panels(example("growth"))
    assert [panel.get_title(loc="left") for panel in axes] == ["exponent 1.00"] * 3 + ["exponent 0.90"] * 3
    assert all(panel.get_xscale() == panel.get_yscale() == "log" for panel in axes)
    fills = {line.get_fillstyle(): len(line.get_xdata()) for line in axes[2].lines}
    assert fills == {"full": 3, "none": 1}
    assert [text.get_text() for text in axes[2].get_xticklabels()] == ["3M", "7B"]


def test_growth_of_one_axis_has_two_panels():
    (frame,) = EXAMPLES["growth"]
    assert len(panels(draw("growth", frame[frame.axis == "texts"]))) == 2
