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


def test_points_of_a_seed_are_joined_in_the_order_of_their_distance():
    frame, turns = EXAMPLES["overoptimisation"]
    back = frame.assign(kl=frame.kl.where(frame.x != 30, 0.1))  # a policy that came back after it had gone far
    (axes, *_) = panels(draw("overoptimisation", back, turns))
    assert all(np.diff(line.get_xdata()).min() >= 0 for line in axes.lines if len(line.get_xdata()) > 2)
    gold = back[(back.setting == "kl_coef 0.3, all pairs")].assign(gold=lambda rows: rows.gold / 2.1)
    change = gold.gold - gold.groupby("seed").gold.transform("first")
    assert lines(axes)["gold score"][1] == pytest.approx(change[gold.x == 30].mean())


def test_the_gap_is_that_between_the_means_of_proxy_and_gold():
    axes = panels(example("best_of_n"))[0]
    (gap,) = axes.collections
    corners = gap.get_paths()[0].vertices
    shown = lines(axes)
    for n, proxy, gold in zip((1, 64), shown["proxy reward"][[0, -1]], shown["gold score"][[0, -1]], strict=True):
        assert {proxy, gold} <= set(corners[corners[:, 0] == n][:, 1])


def test_best_of_n_starts_every_curve_at_zero():
    (axes, *_) = panels(example("best_of_n"))
    starts = {name: y[0] for name, y in lines(axes).items() if name != "over-optimised after"}
    assert starts == pytest.approx({"proxy reward": 0, "second judge": 0, "gold score": 0})
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


def test_labels_show_the_means_of_the_seeds_in_both_measures_and_each_seed_beside_them():
    (frame,) = EXAMPLES["labels"]
    for axes, metric in zip(panels(example("labels")), ("gold", "accuracy_on_policy"), strict=True):
        rows = frame[frame.metric == metric]
        shown, points = lines(axes), [point for of in axes.collections for point in of.get_offsets()[:, 1]]
        for arm, label in (("corpus", "pairs of the corpus"), ("active", "SFT's, chosen")):
            np.testing.assert_allclose(shown[label], rows[rows.arm == arm].groupby("labels")["mean"].mean())
        assert sorted(points) == pytest.approx(sorted(rows["mean"]))
        assert [text.get_text() for text in axes.get_xticklabels()] == ["500", "1,000", "2,000", "8,000"]
    gold_alone = panels(draw("labels", frame[frame.metric == "gold"]))
    assert [axes.get_title("left") for axes in gold_alone] == ["PPO"]


def test_frontier_joins_the_best_of_n_of_a_seed_in_the_order_of_their_distance():
    reward = panels(example("frontier"))[0]
    joined = [line for line in reward.lines if line.get_marker() == "P"]
    assert [len(line.get_xdata()) for line in joined] == [3, 3]
    assert all(np.diff(line.get_xdata()).min() > 0 for line in joined)
    assert sorted(text.get_text() for text in reward.texts) == ["n = 16", "n = 4", "n = 64"]


def test_frontier_shows_the_references_as_a_line_across_the_gold_score_alone():
    reward, gold = panels(example("frontier"))
    assert "references" not in lines(reward) and set(lines(gold)["references"]) == {4.5}
    assert "reference" not in lines(gold)
