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


def test_cost_bars_stack_what_training_adds_on_the_weights():
    memory, time = panels(example("cost_bars"))
    weights, added = (container.patches for container in memory.containers)
    assert [bar.get_width() for bar in weights] == [507.0, 168.4, 498.0]
    assert [bar.get_x() + bar.get_width() for bar in added] == [1480.0, 1120.0, 2210.0]
    assert [text.get_text() for text in memory.texts] == ["1,480", "1,120", "2,210"]
    assert [text.get_text() for text in time.texts] == ["0.345", "0.502", "0.412"]
    names = [text.get_text() for text in memory.get_yticklabels()]
    assert names == ["LoRA\n2.36 M trained", "QLoRA\n2.36 M trained", "full\n124 M trained"]


def test_a_cost_that_was_not_measured_is_said_to_be_so():
    frame = EXAMPLES["cost_bars"][0].assign(memory_megabytes=np.nan)
    memory, _ = panels(draw("cost_bars", frame))
    assert {text.get_text() for text in memory.texts} == {"not measured"}
    assert {bar.get_width() for bar in memory.patches} == {0}


def test_learning_rates_fill_and_name_the_lowest_loss_of_each_method():
    (axes,) = panels(example("learning_rates"))
    filled = [line for line in axes.lines if line.get_markerfacecolor() != "white"]
    found = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in filled}
    assert found == {(1e-3, 1.43), (3e-3, 1.52)}
    assert {(text.get_text(), text.xy) for text in axes.texts} == {
        ("full: 1e-3", (1e-3, 1.43)),
        ("QLoRA: 3e-3", (3e-3, 1.52)),
    }


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
