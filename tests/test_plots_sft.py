"""The figures of stage 1 show the numbers of their frames."""

import numpy as np
import pandas as pd
import pytest
from plot_examples import EXAMPLES, draw, example, panels


def test_token_lengths_show_the_counts_of_the_frame():
    (axes,) = panels(example("token_lengths"))
    frame = EXAMPLES["token_lengths"][0]
    for patch in axes.patches:
        rows = frame[frame.text == patch.get_label()]
        values, edges, _ = patch.get_data()
        shown = values > 0
        np.testing.assert_array_equal(edges[:-1][shown], rows.tokens)
        np.testing.assert_array_equal(values[shown], rows["count"])


def test_cost_bars_write_the_value_at_each_bar():
    first, *_, last = panels(example("cost_bars"))
    assert [bar.get_height() for bar in first.patches] == [2_359_296, 2_359_296, 124_439_808]
    assert [text.get_text() for text in first.texts] == ["2.36 M", "2.36 M", "124 M"]
    assert [text.get_text() for text in last.texts] == ["0.345", "0.502", "0.412"]


def test_a_cost_that_was_not_measured_is_said_to_be_so():
    frame = EXAMPLES["cost_bars"][0].assign(memory_megabytes=np.nan)
    memory = panels(draw("cost_bars", frame))[2]
    assert {text.get_text() for text in memory.texts} == {"not measured"}


def test_learning_rates_ring_the_lowest_loss_of_each_method():
    (axes,) = panels(example("learning_rates"))
    rings = [line for line in axes.lines if line.get_markersize() > 10]
    found = {(float(ring.get_xdata()[0]), float(ring.get_ydata()[0])) for ring in rings}
    assert found == {(1e-3, 1.43), (3e-3, 1.52)}


def test_stop_and_length_puts_the_limit_into_the_last_bin():
    stops, lengths = EXAMPLES["stop_and_length"]
    left, *rows = panels(example("stop_and_length"))
    assert [bar.get_height() for bar in left.patches] == list(stops["mean"])
    values, edges, _ = rows[1].patches[0].get_data()
    assert (values[-1], edges[-2]) == (300, lengths.tokens.max())


def test_too_many_runs_are_refused():
    runs = pd.concat(EXAMPLES["loss_curves"][0].assign(run=f"run_{i}") for i in range(5))
    with pytest.raises(ValueError, match="figure loss_curves: 5 runs"):
        draw("loss_curves", runs)
