"""Figures: each one is drawn from its frame, labelled, small, the same twice, and shown once by a notebook."""

import inspect
import itertools
import os
from types import SimpleNamespace

from rlhf import outputs, plots
from rlhf.registry import MODELS

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from plot_examples import EXAMPLES, all_texts, colours, draw, example, panels, png, with_rows

LARGEST_PNG = 60_000
TURNING = ("overoptimisation", "best_of_n")  # their second frame may be empty
every_figure = pytest.mark.parametrize("name", EXAMPLES)


def test_every_public_function_of_the_package_has_an_example():
    assert {name for name, value in vars(plots).items() if inspect.isfunction(value)} == set(EXAMPLES)


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


@pytest.mark.parametrize("name", [name for name, arguments in EXAMPLES.items() if arguments])  # diagrams have none
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


def test_a_model_has_the_same_colour_in_every_figure():
    expected = {MODELS[name].label: MODELS[name].colour for name in ("base", "sft_qlora", "sft_full", "ppo")}
    assert len(set(expected.values())) == 4
    for name in ("model_metrics", "published_beside", "gold_parts", "loss_curves", "reward_against_gold"):
        shown = colours(example(name))
        assert shown.items() <= expected.items() and len(shown) >= 2
    assert colours(example("model_metrics")) == expected


def test_write_figure_writes_what_the_notebook_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path))
    figure = example("margins")
    shown = figure._repr_png_()
    path = outputs.write_figure(SimpleNamespace(name="lab"), "margins.png", figure)
    assert path.read_bytes() == shown
    assert Image.open(path).size == (770, 385)


def test_a_notebook_shows_a_figure_once_where_it_is_the_value_of_a_cell():
    made = "from rlhf import plots; import pandas as pd\nrows = pd.DataFrame({'difference': [0, 1], 'count': [2, 3]})"
    cells = [
        f"{made}\nplots.length_difference(rows)",
        "figure = plots.length_difference(rows)",
        "import matplotlib.pyplot as plt\nplots.length_difference(rows)",
        "plt.plot([0, 1]); plt.close()\nplots.length_difference(rows)",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(outputs.ROOT)}})
    client.execute(env=os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"})
    images = [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in notebook.cells]
    assert images == [1, 0, 1, 1]
    assert [len(cell.outputs) for cell in notebook.cells] == images
