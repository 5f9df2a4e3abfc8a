"""The figures of the studies show the numbers of their frames."""

import numpy as np
import pytest
from plot_examples import EXAMPLES, draw, example, lines, panels


def test_overoptimisation_shows_gold_in_deviations_from_sft_and_marks_the_turns_that_were_found():
    frame, turns = EXAMPLES["overoptimisation"]
    cheap = panels(example("overoptimisation"))[1]
    rows = frame[frame.setting == "kl_coef 0, all pairs"]
    first = rows[rows.seed == 0]
    scored = [(r.gold - r.gold.iloc[0]) / 2.1 for _, r in rows.groupby("seed")]
    np.testing.assert_allclose(lines(cheap)["gold score"], np.mean(scored, axis=0))
    marks = [line for line in cheap.lines if line.get_marker() == "v"]
    assert len(marks) == turns[turns.setting == "kl_coef 0, all pairs"].found.sum() == 2
    assert marks[0].get_xdata()[0] == pytest.approx(np.sqrt(first[first.x == 12].kl.item()))
    assert not [line for line in panels(example("overoptimisation"))[0].lines if line.get_marker() == "v"]


def test_best_of_n_starts_every_curve_at_zero():
    (axes, *_) = panels(example("best_of_n"))
    assert {name: y[0] for name, y in lines(axes).items()} == pytest.approx(
        {"proxy reward": 0, "second judge": 0, "gold score": 0}
    )
    marks = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "v"]
    assert marks == [[16]]  # of the one seed where it was found


def test_curves_without_a_gold_score_leave_it_out():
    frame, turns = EXAMPLES["overoptimisation"]
    shown = panels(draw("overoptimisation", frame.assign(gold=np.nan, gold_unit=np.nan), turns[:0]))
    assert list(lines(shown[0])) == ["proxy reward", "second judge"]


def test_data_size_shows_the_mean_of_the_seeds_for_the_slices_that_are_asked_for():
    frame = EXAMPLES["data_size"][0]
    shown = lines(panels(example("data_size"))[0])
    assert list(shown) == ["all test pairs", "off topic", "wrong object"]
    means = frame[frame.slice == "off_topic"].groupby("pairs").accuracy.mean()
    np.testing.assert_allclose(shown["off topic"], means)


def test_frontier_joins_the_best_of_n_of_a_seed_in_the_order_of_their_distance():
    reward = panels(example("frontier"))[0]
    joined = [line for line in reward.lines if line.get_marker() == "P"]
    assert [len(line.get_xdata()) for line in joined] == [3, 3]
    assert all(np.diff(line.get_xdata()).min() > 0 for line in joined)
