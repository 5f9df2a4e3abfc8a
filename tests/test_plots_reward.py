"""The figures of stage 2 show the numbers of their frames."""

import numpy as np
import pandas as pd
from plot_examples import EXAMPLES, draw, example, panels


def test_error_kinds_without_a_gold_score_say_so():
    frame = pd.DataFrame({"error": ["unlabelled"], "share": [1.0], "length_rule": [0.6], "gold_agreement": [np.nan]})
    gold = panels(draw("error_kinds", frame))[2]
    assert [text.get_text() for text in gold.texts] == ["not measured"]


def test_error_kinds_and_slices_are_sorted():
    shares = [bar.get_width() for bar in panels(example("error_kinds"))[0].patches]
    assert shares == sorted(shares, reverse=True)
    frame, reference = EXAMPLES["accuracy_slices"]
    (axes,) = panels(example("accuracy_slices"))
    rows = frame.sort_values("mean", ascending=False)
    names = [f"{name.replace('_', ' ')} (n = {n})" for name, n in zip(rows["slice"], rows.n, strict=True)]
    assert [text.get_text() for text in axes.get_yticklabels()] == names
    dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [0.5, reference]


def test_length_difference_lays_both_sides_over_each_other_and_says_what_it_leaves_out():
    frame = pd.DataFrame({"difference": [-60, -2, 0, 1, 2, 3], "count": [1, 2, 10, 3, 3, 1]})
    (axes,) = panels(draw("length_difference", frame))
    chosen, rejected = (patch.get_data() for patch in axes.patches)
    assert list(chosen.edges[:3]) == list(rejected.edges[:3]) == [1, 3, 5]
    assert list(chosen.values[:3]) == [6, 1, 0] and chosen.values.sum() == 7
    assert list(rejected.values[:3]) == [2, 0, 0] and rejected.values[-1] == 1
    labels = [patch.get_label() for patch in axes.patches]
    assert labels == ["chosen longer: 35.0 % of pairs", "rejected longer: 15.0 % of pairs"]
    assert [text.get_text() for text in axes.texts] == ["equally long, not drawn: 50.0 % of pairs"]


def test_margins_stack_right_on_wrong_in_a_bin_that_holds_both():
    frame = pd.DataFrame({"margin": [-1, 0, 0, 1], "count": [4, 3, 2, 5], "correct": [False, True, False, True]})
    (axes,) = panels(draw("margins", frame))
    right, wrong = (patch.get_data() for patch in axes.patches)
    np.testing.assert_array_equal(right.values - right.baseline, [0, 3, 5])
    np.testing.assert_array_equal(wrong.values - wrong.baseline, [4, 2, 0])
    np.testing.assert_array_equal(wrong.values, [4, 5, 5])


def test_calibration_marks_have_areas_in_proportion_to_their_pairs():
    frame = EXAMPLES["calibration"][0]
    (axes,) = panels(example("calibration"))
    areas = axes.collections[-1].get_sizes()
    np.testing.assert_allclose(areas / areas.max(), frame.n / frame.n.max())
