"""Figures: each one is drawn from its frame, labelled, small, the same twice, and shown once by a notebook."""

import functools
import inspect
import io
import itertools
import os
from types import SimpleNamespace

from rlhf import figures, outputs
from rlhf.evaluation import PROBES
from rlhf.lab.gold import WEIGHTS
from rlhf.metrics import SUMMARY_COLUMNS, calibration

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

MODELS = ["base", "sft_qlora", "sft_full", "ppo"]
LARGEST_PNG = 60_000
TURNING = ("overoptimisation", "best_of_n")  # their second frame may be empty


def histogram(values, edges, column: str) -> pd.DataFrame:
    """Left edge and count of each bin that is not empty."""
    counts, edges = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    frame = pd.DataFrame({column: edges[:-1], "count": counts})
    return frame[frame["count"] > 0]


def summary(means: dict[str, list[float]], models: list[str], half_width: float) -> pd.DataFrame:
    rows = [
        (model, metric, mean, mean - half_width, mean + half_width, 300)
        for metric, values in means.items()
        for model, mean in zip(models, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def example_frames() -> dict[str, tuple]:
    """Arguments of every figure: made up, but of the size and shape that a run gives."""
    random = np.random.default_rng(0)
    rouge_names = ["rouge1", "rouge2", "rougeL"]
    rouge = summary(
        {"rouge1": [0.19, 0.43, 0.47, 0.49], "rouge2": [0.04, 0.2, 0.24, 0.25], "rougeL": [0.14, 0.33, 0.37, 0.38]},
        MODELS,
        0.012,
    )
    published = pd.DataFrame(
        [
            ("base", [0.1793, 0.0492, 0.1444]),
            ("sft_full", [0.3534, 0.1487, 0.2622]),
            ("sft_qlora", [0.3117, 0.126, 0.2405]),
            ("ppo", [0.3365, 0.139, 0.2515]),
        ],
        columns=["model", "value"],
    ).explode("value")
    published = published.astype({"value": float}).assign(metric=rouge_names * 4)
    parts = {part: random.normal(weight / 2, 0.15, 4) for part, weight in WEIGHTS.items()}
    return {
        "token_lengths": (token_length_frame(random),),
        "learning_rates": (
            pd.DataFrame(
                {
                    "method": ["full"] * 3 + ["qlora"] * 3,
                    "learning_rate": [3e-4, 1e-3, 3e-3, 1e-3, 3e-3, 1e-2],
                    "validation_loss": [1.61, 1.43, 1.72, 1.66, 1.52, 1.58],
                }
            ),
        ),
        "loss_curves": (loss_curve_frame(random),),
        "cost_bars": (
            pd.DataFrame(
                [
                    ("full", 124_439_808, 498.0, 2210.0, 0.412),
                    ("lora", 2_359_296, 507.0, 1480.0, 0.345),
                    ("qlora", 2_359_296, 168.4, 1120.0, 0.502),
                ],
                columns=["method", "trainable_parameters", "weight_megabytes", "memory_megabytes", "seconds_per_step"],
            ),
        ),
        "stop_and_length": stop_frames(random),
        "model_metrics": (rouge, rouge_names, "ROUGE on the test prompts, beam search", "mean F-measure"),
        "published_beside": (rouge, published),
        "error_kinds": (error_frame(random),),
        "length_difference": (histogram(random.normal(3, 22, 600), np.arange(-80, 85, 5), "difference"),),
        "reward_curve": (reward_curve_frame(random),),
        "calibration": (calibration(random.normal(2, 2.2, 600)),),
        "accuracy_slices": (slice_frame(random), 0.842),
        "margins": (margin_frame(random),),
        "ppo_curves": (pd.concat([ppo_frame(random).assign(model=m) for m in ("ppo", "ppo_scratch")]),),
        "clipped_objective": (objective_frame(), 0.2),
        "kl_estimators": (pd.DataFrame({"k1": random.normal(2, 3, 300), "k3": random.gamma(2, 1, 300)}),),
        "gold_parts": (pd.concat([summary({"gold": [0, 2, 3, 4]}, MODELS, 0.1), summary(parts, MODELS, 0.06)]),),
        "paired": (paired_frame(random),),
        "reward_against_gold": (proxy_frame(random),),
        "reward_probes": (probe_frame(random),),
        "overoptimisation": study_frames(random),
        "best_of_n": study_frames(random),
        "relevance": (relevance_frame(random),),
        "data_size": (data_size_frame(random), ("off_topic", "wrong_object")),
        "judges": (judge_frame(random),),
        "frontier": (frontier_frame(random),),
    }


def token_length_frame(random) -> pd.DataFrame:
    means = {"prompt": (18, 4), "chosen": (66, 14), "rejected": (58, 20)}
    return pd.concat(
        histogram(random.normal(mean, spread, 6000).clip(4), np.arange(0, 160, 4), "tokens").assign(text=text)
        for text, (mean, spread) in means.items()
    )


def loss_curve_frame(random) -> pd.DataFrame:
    rows = []
    for run, floor in (("sft_qlora", 1.05), ("sft_full", 0.9)):
        for step in range(10, 380, 10):
            level = floor + 1.6 * np.exp(-step / 70)
            rows.append((run, "train", step, level + random.normal(0, 0.05)))
            if step % 70 == 0:
                rows.append((run, "validation", step, level + 0.04))
    return pd.DataFrame(rows, columns=["run", "split", "step", "loss"])


def stop_frames(random) -> tuple[pd.DataFrame, pd.DataFrame]:
    stops = pd.DataFrame(
        [
            ("eos", "stop_rate", 0.983, 0.963, 0.997),
            ("none", "stop_rate", 0.0, 0.0, 0.0),
            ("pad_is_eos", "stop_rate", 0.02, 0.007, 0.037),
        ],
        columns=["ending", "metric", "mean", "ci_low", "ci_high"],
    )
    edges = np.arange(0, 104, 4)
    lengths = {"eos": random.normal(55, 14, 300), "none": [96] * 300, "pad_is_eos": [20, 50] * 3 + [96] * 294}
    frame = pd.concat(
        histogram(np.minimum(tokens, 96), edges, "tokens").assign(ending=ending) for ending, tokens in lengths.items()
    )
    return stops, frame


def error_frame(random) -> pd.DataFrame:
    kinds = [
        ("off_topic", 0.15),
        ("wrong_object", 0.15),
        ("wrong_action", 0.13),
        ("rambling", 0.08),
        ("evasive", 0.05),
        ("generic", 0.05),
        ("repetitive", 0.08),
        ("cut_off", 0.07),
        ("fewer_steps", 0.07),
        ("disordered", 0.07),
        ("weaker", 0.1),
    ]
    frame = pd.DataFrame(kinds, columns=["error", "share"])
    return frame.assign(
        length_rule=random.uniform(0.2, 0.9, len(frame)), gold_agreement=random.uniform(0.85, 1, len(frame))
    )


def reward_curve_frame(random) -> pd.DataFrame:
    rows = []
    for step in range(5, 190, 5):
        level = np.exp(-step / 60)
        rows.append(
            ("train", step, 0.35 + 0.36 * level + random.normal(0, 0.04), 0.86 - 0.36 * level - 0.03 * (step % 3))
        )
        if step % 35 == 0:
            rows.append(("validation", step, 0.37 + 0.34 * level, 0.85 - 0.33 * level))
    return pd.DataFrame(rows, columns=["split", "step", "loss", "accuracy"])


def slice_frame(random) -> pd.DataFrame:
    names = [*error_frame(random).error, "chosen_longer", "equal_length", "chosen_shorter"]
    means = random.uniform(0.6, 0.98, len(names))
    return pd.DataFrame(
        {
            "slice": names,
            "mean": means,
            "ci_low": means - 0.06,
            "ci_high": np.minimum(means + 0.05, 1),
            "n": random.integers(20, 90, len(names)),
        }
    )


def margin_frame(random) -> pd.DataFrame:
    frame = histogram(random.normal(2, 2.2, 600), np.linspace(-8, 10, 37), "margin")
    return frame.assign(correct=frame.margin >= 0)


def ppo_frame(random) -> pd.DataFrame:
    time = np.arange(1, 25) / 24
    kl = 9 * time + random.normal(0, 0.3, 24)
    reward = 1 + 2.2 * (1 - np.exp(-3 * time)) + random.normal(0, 0.2, 24)
    return pd.DataFrame(
        {
            "episode": 64 * np.arange(1, 25),
            "reward": reward,
            "kl": kl,
            "reward_minus_kl": reward - 0.1 * kl,
            "entropy": 1.1 - 0.5 * time + random.normal(0, 0.02, 24),
            "value_loss": 1.5 * np.exp(-4 * time) + random.uniform(0, 0.1, 24),
            "clip_fraction": random.uniform(0.02, 0.12, 24),
            "response_length": 58 + 8 * time + random.normal(0, 1.5, 24),
            "stop_rate": np.minimum(0.95 + 0.06 * time + random.normal(0, 0.01, 24), 1),
        }
    )


def objective_frame() -> pd.DataFrame:
    rows = []
    for advantage in (1, -1):
        for ratio in np.linspace(0.5, 1.5, 41):
            clipped = min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
            rows.append((advantage, ratio, ratio * advantage, clipped))
    return pd.DataFrame(rows, columns=["advantage", "ratio", "unclipped", "clipped"])


def paired_frame(random) -> pd.DataFrame:
    scales = {"reward": 1, "gold": 1.5, "rouge1": 0.05, "stop_rate": 0.03, "kl": 6}
    rows = []
    for metric, scale in scales.items():
        for model, against in (("ppo", "sft_full"), ("sft_full", "sft_qlora"), ("sft_full", "base")):
            difference = scale * random.uniform(-0.2, 1)
            interval = (difference - 0.15 * scale, difference + 0.15 * scale)
            rows.append((model, against, metric, difference, *interval, 300))
    columns = ["model", "against", "metric", "difference", "ci_low", "ci_high", "n"]
    return pd.DataFrame(rows, columns=columns)


def study_frames(random) -> tuple[pd.DataFrame, pd.DataFrame]:
    """overoptimisation.csv and turning_points.csv of two seeds: gold turns down at update 12 where KL is cheap."""
    rows, turns = [], []
    for seed in (0, 1):
        for price, setting in ((1, "kl_coef 0.3, all pairs"), (9, "kl_coef 0, all pairs")):
            for x in range(0, 61, 6):
                gold = 2.8 + 0.06 * x - 0.0025 * price * max(0, x - 12)
                noise = random.normal(0, 0.05, 3)
                row = (x, price * x / 10, 0.02 * x + noise[0], 0.015 * x + noise[1], gold + noise[2], 2.1)
                rows.append((seed, "ppo", setting, *row))
            turns.append((seed, "ppo", setting, "gold", 12, 60, price > 1))
        turns.append((seed, "best_of_n", "all pairs", "gold", 16, 64, seed == 1))
        for n in (1, 2, 4, 8, 16, 32, 64):
            rows.append((seed, "best_of_n", "all pairs", n, np.log(n), np.log2(n) / 3, np.log2(n) / 4, 3 + n / 64, 2.1))
    columns = ["seed", "method", "setting", "x", "kl", "proxy", "judge", "gold", "gold_unit"]
    turn_columns = ["seed", "method", "setting", "by", "peak_x", "end_x", "found"]
    return pd.DataFrame(rows, columns=columns), pd.DataFrame(turns, columns=turn_columns)


def relevance_frame(random) -> pd.DataFrame:
    rows = []
    for seed in (0, 1, 2):
        for model, level in (("blind", 0.5), ("seeing", 0.95)):
            values = {"accuracy": level - 0.1, "accuracy off_topic": level, "accuracy wrong_object": level}
            values |= {"reward": 0.5, "gold": level - 0.4, "relevance": level / 4}
            for metric, value in values.items():
                mean = value + random.normal(0, 0.02)
                rows.append((seed, model, metric, mean, mean - 0.1, mean + 0.1))
    return pd.DataFrame(rows, columns=["seed", "reward_model", "metric", "mean", "ci_low", "ci_high"])


def data_size_frame(random) -> pd.DataFrame:
    rows = [
        (seed, pairs, name, 0.6 + 0.1 * i + random.normal(0, 0.01))
        for seed in (0, 1)
        for i, pairs in enumerate((1000, 2000, 4000, 8000))
        for name in ("all", "off_topic", "wrong_object", "repetitive")
    ]
    return pd.DataFrame(rows, columns=["seed", "pairs", "slice", "accuracy"])


def judge_frame(random) -> pd.DataFrame:
    rows = [
        (seed, model, metric, random.uniform(0.2, 0.8))
        for seed in (0, 1)
        for model in ("base", "ppo", "ppo_half")
        for metric in ("win_by_proxy", "win_by_judge", "win_by_gold", "judge_agrees")
    ]
    return pd.DataFrame(rows, columns=["seed", "model", "metric", "mean"])


def frontier_frame(random) -> pd.DataFrame:
    kl = {"base": 35, "sft_full": 0, "ppo": 2, "best of 4": 0.6, "best of 16": 1.8, "best of 64": 3.2}
    rows = [
        (seed, model, metric, value + random.normal(0, 0.02))
        for seed in (0, 1)
        for model, distance in kl.items()
        for metric, value in (("kl_from_sft", distance + 0.1), ("reward", distance / 4), ("gold", 3 - distance / 9))
    ]
    return pd.DataFrame(rows, columns=["seed", "model", "metric", "mean"])


def probe_frame(random) -> pd.DataFrame:
    reward = random.normal(0, 2, len(PROBES))
    names = [name for name, *_ in PROBES]
    return pd.DataFrame({"probe": names, "reward": reward, "ci_low": reward - 0.2, "ci_high": reward + 0.2})


def proxy_frame(random) -> pd.DataFrame:
    rows = []
    for model, shift in (("sft_full", 0), ("ppo", 1.2)):
        gold = np.round((random.normal(3.5 + shift, 1.6, 300)).clip(-4, 7.5) * 4) / 4
        rows.append(pd.DataFrame({"model": model, "gold": gold, "reward": 0.7 * gold - 1 + random.normal(0, 1, 300)}))
    return pd.concat(rows)


EXAMPLES = example_frames()
every_figure = pytest.mark.parametrize("name", EXAMPLES)


def draw(name: str, *arguments) -> Figure:
    return getattr(figures, name)(*arguments)


@functools.cache
def example(name: str) -> Figure:
    return draw(name, *EXAMPLES[name])


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def with_rows(arguments: tuple, change) -> tuple:
    return tuple(change(value) if isinstance(value, pd.DataFrame) else value for value in arguments)


def panels(figure: Figure) -> list:
    return [axes for axes in figure.axes if axes.axison]


def all_texts(figure: Figure) -> list:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def intervals(axes) -> dict[str, tuple]:
    """Points (x, y) of each labelled errorbar and the ends of its intervals, (n, 2)."""
    found = {}
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer):
            line, _, (bars,) = container.lines
            ends = [segment[:, int(container.has_yerr)] for segment in bars.get_segments() if len(segment)]
            found[container.get_label()] = (*np.array(line.get_data(), dtype=float), np.array(ends))
    return found


def test_every_public_function_of_the_module_has_an_example():
    functions = {
        name
        for name, value in vars(figures).items()
        if inspect.isfunction(value) and value.__module__ == figures.__name__ and not name.startswith("_")
    }
    assert functions == set(EXAMPLES)


@every_figure
def test_figure_has_a_title_and_labels_on_all_axes(name):
    figure = example(name)
    assert isinstance(figure, Figure)
    assert figure.get_suptitle()
    assert panels(figure)
    for axes in panels(figure):
        for axis in (axes.xaxis, axes.yaxis):
            shows_numbers = any(text.get_visible() and text.get_text() for text in axis.get_ticklabels())
            assert axis.label.get_text() or not shows_numbers


def check_text(figure: Figure) -> None:
    """All text is large, lies inside of the figure, and no tick label covers the next one."""
    figure.draw_without_rendering()
    for text in all_texts(figure):
        assert text.get_fontsize() >= 10
    whole, edge = figure.get_tightbbox().transformed(figure.dpi_scale_trans), figure.bbox
    assert whole.x0 >= edge.x0 and whole.y0 >= edge.y0 and whole.x1 <= edge.x1 and whole.y1 <= edge.y1
    for axes in panels(figure):
        for axis in (axes.xaxis, axes.yaxis):
            shown = [text for text in axis.get_ticklabels() if text.get_visible() and text.get_text()]
            boxes = sorted((text.get_window_extent() for text in shown), key=lambda box: (box.x0, box.y0))
            assert not any(first.overlaps(second) for first, second in itertools.pairwise(boxes))


@every_figure
def test_text_is_large_whole_and_does_not_overlap(name):
    check_text(example(name))


@every_figure
def test_legend_has_no_frame_and_lies_beside_the_data(name):
    figure = example(name)
    for legend in figure.findobj(Legend):
        box = legend.get_window_extent()
        assert not legend.get_frame_on()
        assert not any(box.overlaps(axes.get_window_extent()) for axes in panels(figure))


@every_figure
def test_png_is_small_and_the_same_each_time(name):
    figure = example(name)
    first = png(figure)
    assert 2_000 < len(first) < LARGEST_PNG
    assert first == png(figure) == png(draw(name, *EXAMPLES[name]))


@every_figure
def test_empty_frame_raises_an_error_that_names_the_figure(name):
    arguments = EXAMPLES[name]
    for i, value in enumerate(arguments):
        if isinstance(value, pd.DataFrame) and not (i and name in TURNING):  # nothing has turned
            with pytest.raises(ValueError, match=f"figure {name}: .*no rows"):
                draw(name, *arguments[:i], value.head(0), *arguments[i + 1 :])


@every_figure
def test_missing_column_raises_an_error_that_names_figure_and_column(name):
    column = EXAMPLES[name][0].columns[0]
    arguments = with_rows(EXAMPLES[name], lambda frame: frame.drop(columns=column, errors="ignore"))
    with pytest.raises(ValueError, match=f"figure {name}: column '{column}'"):
        draw(name, *arguments)


@every_figure
def test_frame_is_not_changed(name):
    arguments = with_rows(EXAMPLES[name], lambda frame: frame.copy())
    draw(name, *arguments)
    for value, before in zip(arguments, EXAMPLES[name], strict=True):
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, before)


@every_figure
@pytest.mark.filterwarnings("error")
def test_the_shortest_run_can_be_drawn(name):
    if name == "gold_parts":  # its first row is the whole gold score, which is no part
        arguments = (EXAMPLES[name][0].tail(1),)
    elif name == "best_of_n":  # its first row is one of PPO
        arguments = (EXAMPLES[name][0].query("method == 'best_of_n'").head(1), EXAMPLES[name][1])
    elif name == "frontier":  # one model has a row for each metric
        arguments = (EXAMPLES[name][0].head(3),)
    else:
        arguments = with_rows(EXAMPLES[name], lambda frame: frame.head(1))
    figure = draw(name, *arguments)
    assert len(png(figure)) > 2_000
    check_text(figure)


@every_figure
@pytest.mark.filterwarnings("error")
def test_a_frame_read_back_from_its_csv_gives_the_same_kind_of_figure(name, tmp_path):
    def through_csv(frame):
        frame.to_csv(tmp_path / "frame.csv", index=False, float_format="%.6g")
        return pd.read_csv(tmp_path / "frame.csv")

    before, after = draw(name, *EXAMPLES[name]), draw(name, *with_rows(EXAMPLES[name], through_csv))
    assert [text.get_text() for text in all_texts(after)] == [text.get_text() for text in all_texts(before)]


@pytest.mark.parametrize("name", ["model_metrics", "loss_curves", "margins", "gold_parts", "ppo_curves"])
def test_order_of_the_rows_does_not_matter(name):
    reverse = with_rows(EXAMPLES[name], lambda frame: frame.iloc[::-1])
    assert png(draw(name, *reverse)) == png(example(name))


def test_style_does_not_depend_on_matplotlibs_settings_and_leaves_them_alone():
    expected = png(example("model_metrics"))
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        assert png(draw("model_metrics", *EXAMPLES["model_metrics"])) == expected
        assert dict(matplotlib.rcParams) == before


def colours(figure: Figure) -> dict[str, str]:
    """Colour of each label in the figure."""
    found = {}
    for axes in figure.axes:
        for artist, label in zip(*axes.get_legend_handles_labels(), strict=True):
            line = artist.lines[0] if isinstance(artist, ErrorbarContainer) else artist
            found[label] = line.get_color()
    return found


def test_a_model_has_the_same_colour_in_every_figure():
    expected = {figures.SERIES[name][2]: figures.SERIES[name][0] for name in ("base", "sft_qlora", "sft_full", "ppo")}
    assert len(set(expected.values())) == 4
    for name in ("model_metrics", "published_beside", "gold_parts", "loss_curves", "reward_against_gold"):
        shown = colours(example(name))
        assert shown.items() <= expected.items() and len(shown) >= 2
    assert colours(example("model_metrics")) == expected


def test_models_stand_in_their_order_and_unknown_ones_get_a_colour_of_their_own():
    frame = summary({"reward": [1, 2, 3, 4]}, ["dpo", "ppo", "best_of_n", "base"], 0.1)
    shown = colours(draw("model_metrics", frame, ["reward"], "Reward"))
    assert list(shown) == ["base", "PPO (TRL)", "dpo", "best of n"]
    assert len(set(shown.values())) == 4


def test_token_lengths_show_the_counts_of_the_frame():
    (axes,) = panels(example("token_lengths"))
    frame = EXAMPLES["token_lengths"][0]
    for patch in axes.patches:
        rows = frame[frame.text == patch.get_label()]
        values, edges, _ = patch.get_data()
        shown = values > 0
        np.testing.assert_array_equal(edges[:-1][shown], rows.tokens)
        np.testing.assert_array_equal(values[shown], rows["count"])


def test_bins_that_the_frame_leaves_out_are_drawn_empty():
    frame = pd.DataFrame({"difference": [-10, 5, 15], "count": [1, 2, 3]})
    (axes,) = panels(draw("length_difference", frame))
    values, edges, _ = axes.patches[0].get_data()
    np.testing.assert_array_equal(values, [1, 0, 0, 2, 0, 3])
    np.testing.assert_array_equal(edges, [-10, -5, 0, 5, 10, 15, 20])


@pytest.mark.parametrize(
    ("edges", "width"),
    [([0, 4, 10], 2), ([7], 1), ([3, 3], 1), (np.linspace(-8, 10, 55).round(5)[[0, 2, 7, 54]], 1 / 3)],
)
def test_bin_width_is_found_from_the_left_edges(edges, width):
    assert figures._bin_width(np.array(edges)) == pytest.approx(width, abs=1e-4)


def test_bin_width_survives_the_rounding_of_a_csv():
    edges = np.histogram_bin_edges(np.random.default_rng(0).normal(1, 2, 600), 40)
    rounded = np.array([float(f"{edge:.6g}") for edge in edges[[0, 3, 4, 9, 21, 39]]])
    assert figures._bin_width(rounded) == pytest.approx(edges[1] - edges[0], rel=1e-4)


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
    assert figures._words(name) == label


def test_model_metrics_shows_means_and_intervals_of_the_frame():
    frame, metrics, *_ = EXAMPLES["model_metrics"]
    (axes,) = panels(example("model_metrics"))
    shown = intervals(axes)
    for model in MODELS:
        rows = frame[frame.model == model].set_index("metric").loc[metrics]
        places, means, ends = shown[figures.SERIES[model][2]]
        np.testing.assert_array_equal(np.round(places), [0, 1, 2])
        np.testing.assert_allclose(means, rows["mean"])
        np.testing.assert_allclose(ends, rows[["ci_low", "ci_high"]])


def test_published_values_stand_on_the_same_scale_without_intervals():
    frame, published = EXAMPLES["published_beside"]
    ours, theirs = panels(example("published_beside"))
    assert ours.get_ylim() == theirs.get_ylim()
    means = {label: values[1] for label, values in intervals(theirs).items()}
    np.testing.assert_allclose(means["full SFT"], published[published.model == "sft_full"].value)
    assert len(intervals(theirs)["full SFT"][2]) == 0
    np.testing.assert_allclose(intervals(ours)["PPO (TRL)"][2], frame[frame.model == "ppo"][["ci_low", "ci_high"]])


def test_gold_parts_leaves_the_whole_score_out_and_keeps_the_judges_order():
    (axes,) = panels(example("gold_parts"))
    assert [text.get_text() for text in axes.get_yticklabels()] == list(WEIGHTS)
    frame = EXAMPLES["gold_parts"][0]
    rows = frame[(frame.model == "ppo") & (frame.metric != "gold")].set_index("metric").loc[list(WEIGHTS)]
    np.testing.assert_allclose(intervals(axes)["PPO (TRL)"][0], rows["mean"])


def test_paired_shows_each_metric_in_a_panel_with_the_differences_of_the_frame():
    frame = EXAMPLES["paired"][0]
    shown = panels(example("paired"))
    assert [axes.get_title(loc="left") for axes in shown[:3]] == ["reward", "gold score", "ROUGE-1"]
    rows = frame[(frame.metric == "gold") & (frame.model == "ppo")]
    x, _, ends = intervals(shown[1])["PPO (TRL)"]
    np.testing.assert_allclose(x, rows.difference)
    np.testing.assert_allclose(ends, rows[["ci_low", "ci_high"]])
    assert [text.get_text() for text in shown[1].texts][-1] == f"{rows.difference.item():+.3g}"
    names = [text.get_text() for text in shown[0].get_yticklabels()]
    assert names == ["full SFT − base", "full SFT − QLoRA SFT", "PPO (TRL) − full SFT"]


def test_cost_bars_write_the_value_at_each_bar():
    first, *_, last = panels(example("cost_bars"))
    assert [bar.get_height() for bar in first.patches] == [2_359_296, 2_359_296, 124_439_808]
    assert [text.get_text() for text in first.texts] == ["2.36 M", "2.36 M", "124 M"]
    assert [text.get_text() for text in last.texts] == ["0.345", "0.502", "0.412"]


def test_a_cost_that_was_not_measured_is_said_to_be_so():
    frame = EXAMPLES["cost_bars"][0].assign(memory_megabytes=np.nan)
    memory = panels(draw("cost_bars", frame))[2]
    assert {text.get_text() for text in memory.texts} == {"not measured"}


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


def test_margins_stack_right_on_wrong_in_a_bin_that_holds_both():
    frame = pd.DataFrame({"margin": [-1, 0, 0, 1], "count": [4, 3, 2, 5], "correct": [False, True, False, True]})
    (axes,) = panels(draw("margins", frame))
    right, wrong = (patch.get_data() for patch in axes.patches)
    np.testing.assert_array_equal(right.values - right.baseline, [0, 3, 5])
    np.testing.assert_array_equal(wrong.values - wrong.baseline, [4, 2, 0])
    np.testing.assert_array_equal(wrong.values, [4, 5, 5])


def test_ppo_curves_show_each_update_and_the_running_mean_of_five():
    frame = EXAMPLES["ppo_curves"][0]
    lines = panels(example("ppo_curves"))[1].lines
    for (thin, thick), (model, rows) in zip((lines[:2], lines[2:]), frame.groupby("model"), strict=True):
        np.testing.assert_allclose(thin.get_ydata(), rows.kl)
        np.testing.assert_allclose(thick.get_ydata()[10], rows.kl[8:13].mean())
        assert thick.get_color() == figures.SERIES[model][0]
    assert len(panels(example("ppo_curves"))[0].lines) == 8


def test_clipped_objective_has_a_panel_for_each_sign_and_marks_the_range_that_still_earns():
    first, second = panels(example("clipped_objective"))
    for axes, sign in ((first, 1), (second, -1)):
        assert axes.get_title(loc="left") == f"advantage {sign:+d}"
        line = next(line for line in axes.lines if line.get_label().startswith("clipped"))
        np.testing.assert_allclose(line.get_ydata()[-1], min(1.5 * sign, 1.2 * sign))
        (span,) = axes.patches
        assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx((0.8, 1.2))


def test_kl_estimators_mark_the_means_and_count_every_answer():
    frame = EXAMPLES["kl_estimators"][0]
    (axes,) = panels(example("kl_estimators"))
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([frame.k1.mean(), frame.k3.mean()])
    assert sum(patch.get_height() for patch in axes.patches) == 2 * len(frame)


def test_learning_rates_ring_the_lowest_loss_of_each_method():
    (axes,) = panels(example("learning_rates"))
    rings = [line for line in axes.lines if line.get_markersize() > 10]
    found = {(float(ring.get_xdata()[0]), float(ring.get_ydata()[0])) for ring in rings}
    assert found == {(1e-3, 1.43), (3e-3, 1.52)}


def test_calibration_marks_have_areas_in_proportion_to_their_pairs():
    frame = EXAMPLES["calibration"][0]
    (axes,) = panels(example("calibration"))
    areas = axes.collections[-1].get_sizes()
    np.testing.assert_allclose(areas / areas.max(), frame.n / frame.n.max())


def test_stop_and_length_puts_the_limit_into_the_last_bin():
    stops, lengths = EXAMPLES["stop_and_length"]
    left, *rows = panels(example("stop_and_length"))
    assert [bar.get_height() for bar in left.patches] == list(stops["mean"])
    values, edges, _ = rows[1].patches[0].get_data()
    assert (values[-1], edges[-2]) == (300, lengths.tokens.max())


def test_too_many_series_are_refused():
    runs = pd.concat(EXAMPLES["loss_curves"][0].assign(run=f"run_{i}") for i in range(5))
    with pytest.raises(ValueError, match="figure loss_curves: 5 runs"):
        draw("loss_curves", runs)
    models = pd.concat(EXAMPLES["reward_against_gold"][0].assign(model=model) for model in MODELS)
    with pytest.raises(ValueError, match="figure reward_against_gold: 4 models"):
        draw("reward_against_gold", models)


def test_metrics_that_the_frame_does_not_have_are_an_error():
    with pytest.raises(ValueError, match=r"figure model_metrics: .*no rows"):
        draw("model_metrics", EXAMPLES["model_metrics"][0], ["reward"], "Reward")


def test_write_figure_writes_what_the_notebook_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path))
    figure = example("margins")
    shown = figure._repr_png_()
    path = outputs.write_figure(SimpleNamespace(name="lab"), "margins.png", figure)
    assert path.read_bytes() == shown
    assert Image.open(path).size == (770, 385)


def test_a_notebook_shows_a_figure_once_where_it_is_the_value_of_a_cell():
    made = "from rlhf import figures; import pandas as pd\nrows = pd.DataFrame({'difference': [0, 1], 'count': [2, 3]})"
    cells = [
        f"{made}\nfigures.length_difference(rows)",
        "figure = figures.length_difference(rows)",
        "import matplotlib.pyplot as plt\nfigures.length_difference(rows)",
        "plt.plot([0, 1]); plt.close()\nfigures.length_difference(rows)",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(outputs.ROOT)}})
    client.execute(env=os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"})
    images = [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in notebook.cells]
    assert images == [1, 0, 1, 1]
    assert [len(cell.outputs) for cell in notebook.cells] == images


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}


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
