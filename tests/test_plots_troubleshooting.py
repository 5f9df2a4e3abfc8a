"""The figures of planted faults show the numbers of their frames."""

from rlhf.plots.troubleshooting import LABELS
from rlhf.ppo import monitor
from rlhf.studies.faults import FAULTS

import numpy as np
from plot_examples import EXAMPLES, draw, example, lines, panels


def title(axes):
    return axes.get_title(loc="left")


def test_run_is_drawn_beside_the_range_and_the_limits_of_the_healthy_ones():
    frame, fault = EXAMPLES["beside_healthy"]
    kl = next(axes for axes in panels(example("beside_healthy")) if title(axes).startswith("KL"))
    healthy = frame[frame.fault == "healthy"]
    np.testing.assert_allclose(lines(kl)["with the fault"], frame[frame.fault == fault].kl)
    dashed = [line.get_ydata() for line in kl.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(dashed, monitor.band(healthy, "kl"))
    (area,) = kl.collections
    heights = area.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (healthy.kl.min(), healthy.kl.max())


def test_where_no_gold_is_known_the_deviation_of_the_reward_takes_its_place():
    frame, fault = EXAMPLES["beside_healthy"]
    shown = [title(axes) for axes in panels(example("beside_healthy"))]
    without = [title(axes) for axes in panels(draw("beside_healthy", frame.assign(gold=np.nan), fault))]
    assert "gold score" in shown and without == [
        *("reward as it is read", "deviation of the reward"),
        *(heading for heading in shown if heading not in ("reward as it is read", "gold score")),
    ]


def texts(axes):
    names = [label.get_text() for label in axes.get_xticklabels()]
    return {(names[round(t.get_position()[0])], round(t.get_position()[1])): t.get_text() for t in axes.texts}


def test_alarms_stand_at_their_fault_and_measure_and_false_ones_are_counted():
    frame = EXAMPLES["alarms"][0]
    for axes, watch in zip(panels(example("alarms")), ("monitor", "band"), strict=True):
        shown, rows = texts(axes), frame[(frame.watch == watch) & (frame.fault == "no_kl_penalty")]
        expected = rows.set_index("measure").first_update
        place = list(FAULTS).index("no_kl_penalty")
        assert shown["reward std", place] == str(expected.reward_std)
        assert ("repetition", place) not in shown and ("entropy", place) not in shown
        assert shown["reward std", len(FAULTS)] == "0/5"
    assert texts(panels(example("alarms"))[1])["KL", len(FAULTS)] == "1/5"


def test_every_fault_has_a_name_for_readers():
    assert set(LABELS) == {*FAULTS, "healthy"}
