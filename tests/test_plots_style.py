"""The style of the figures: settings, colours, words and bins."""

import warnings

from rlhf import plots
from rlhf.plots import style
from rlhf.registry import MODELS

import matplotlib
import numpy as np
import pandas as pd
import pytest
from plot_examples import EXAMPLES, colours, draw, example, panels, png, summary


def test_style_does_not_depend_on_matplotlibs_settings_and_leaves_them_alone():
    expected = png(example("model_metrics"))
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        assert png(draw("model_metrics", *EXAMPLES["model_metrics"])) == expected
        assert dict(matplotlib.rcParams) == before


def test_models_stand_in_their_order_and_unknown_ones_get_a_colour_of_their_own():
    frame = summary({"reward": [1, 2, 3, 4]}, ["kto", "ppo", "xpo", "base"], 0.1)
    shown = colours(draw("model_metrics", frame, ["reward"], "Reward"))
    assert list(shown) == ["base", "PPO (TRL)", "kto", "xpo"]
    assert len(set(shown.values())) == 4


def test_bins_that_the_frame_leaves_out_are_drawn_empty():
    frame = pd.DataFrame({"margin": [-10, 5, 15], "count": [1, 2, 3], "correct": [True] * 3})
    (axes,) = panels(draw("margins", frame))
    values, edges, _ = axes.patches[0].get_data()
    np.testing.assert_array_equal(values, [1, 0, 0, 2, 0, 3])
    np.testing.assert_array_equal(edges, [-10, -5, 0, 5, 10, 15, 20])


@pytest.mark.parametrize(
    ("edges", "width"),
    [([0, 4, 10], 2), ([7], 1), ([3, 3], 1), (np.linspace(-8, 10, 55).round(5)[[0, 2, 7, 54]], 1 / 3)],
)
def test_bin_width_is_found_from_the_left_edges(edges, width):
    assert style.bin_width(np.array(edges)) == pytest.approx(width, abs=1e-4)


def test_bin_width_survives_the_rounding_of_a_csv():
    edges = np.histogram_bin_edges(np.random.default_rng(0).normal(1, 2, 600), 40)
    rounded = np.array([float(f"{edge:.6g}") for edge in edges[[0, 3, 4, 9, 21, 39]]])
    assert style.bin_width(rounded) == pytest.approx(edges[1] - edges[0], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("rougeL", "ROUGE-L"),
        ("rouge1_sample", "ROUGE-1, sampled"),
        ("stop_rate_sample", "stop rate, sampled"),
        ("win_rate_vs_sft", "win rate against SFT"),
        ("cut_off", "cut off"),
    ],
)
def test_names_are_written_in_words(name, label):
    assert style.words(name) == label


def test_models_look_as_the_registry_says_and_come_first():
    assert list(style.SERIES)[: len(MODELS)] == list(MODELS)
    for key, model in MODELS.items():
        assert style.SERIES[key] == (model.colour, model.marker, model.label)


def test_a_frame_given_by_its_name_is_checked_too():
    with pytest.raises(ValueError, match="figure length_difference: column 'count' not in the frame"):
        plots.length_difference(frame=pd.DataFrame({"difference": [1]}))


def test_a_label_shows_what_has_no_shape_or_is_not_in_the_font_as_an_escape():
    assert style.as_label(" the naïve $5 – \ufffd") == " the naïve $5 – \ufffd"
    assert style.as_label("a\x08b\n語\u200d") == r"a\x08b\n\u8a9e\u200d"


def test_no_token_makes_a_warning():
    frame = EXAMPLES["answer_tokens"][0].assign(token="\x18語")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plots.answer_tokens(frame)
    assert {label.get_text() for label in figure.axes[0].get_yticklabels()} == {r"\x18\u8a9e"}
