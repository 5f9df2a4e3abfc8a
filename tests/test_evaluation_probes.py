"""The probes of a reward model, and the rule by which examples are chosen."""

from rlhf.data import load_preferences
from rlhf.evaluation import probes
from rlhf.lab import gold_table
from rlhf.reward import scoring

import numpy as np
import pandas as pd
import pytest

PROMPTS = ["Why?", "How?", "When?", "Who?"]
ANSWERS = ["First heat the pan. Then wait. Tip: use oil.", "Grill it hot. Turn it once. Then eat."] * 2


def rewards_of(profile, reward_model, tokenizer, answers=ANSWERS):
    return probes.probe_rewards(profile, reward_model, tokenizer, PROMPTS, answers)


def test_probes_are_made_of_the_chosen_answers_as_their_names_say():
    made = {name: make("One two. Three four.", "Another.") for name, _, make in probes.PROBES}
    assert made == {
        "chosen answer": "One two. Three four.",
        "empty": "",
        "politely empty": probes.POLITE,
        "first sentence four times": "One two. One two. One two. One two.",
        "said twice": "One two. Three four. One two. Three four.",
        "cut in half": "One two.",
        "with another answer after it": "One two. Three four. Another.",
        "another prompt's answer": "Another.",
        "words in another order": "One Three four. two.",
        "its keywords": "three, four.",
    }


def test_reward_of_a_probe_is_the_mean_of_its_scores(profile, reward_model, tokenizer, monkeypatch):
    monkeypatch.setattr(probes, "gold_table", lambda *_: pd.DataFrame())
    table = rewards_of(profile, reward_model, tokenizer).set_index("probe")
    assert list(table.index) == [name for name, *_ in probes.PROBES]
    chosen = scoring.score(reward_model, tokenizer, PROMPTS, ANSWERS, [True] * 4)
    empty = scoring.score(reward_model, tokenizer, PROMPTS, [""] * 4, [True] * 4)
    assert table.reward["chosen answer"] == pytest.approx(chosen.mean())
    assert table.reward["empty"] == pytest.approx(empty.mean())
    assert table.beats_chosen["chosen answer"] == 0.5  # each ties with itself
    assert table.beats_chosen["empty"] == (empty > chosen).mean()
    assert table.n.tolist() == [4] * len(table) and table.gold.isna().all()


def test_prompt_whose_longest_probe_does_not_fit_is_left_out_of_all(profile, reward_model, tokenizer, monkeypatch):
    monkeypatch.setattr(probes, "gold_table", lambda *_: pd.DataFrame())
    long = "word " * (reward_model.config.max_position_embeddings // 2)
    table = rewards_of(profile, reward_model, tokenizer, ["A b. C d.", long, "E f. G h.", "I j. K l."])
    assert set(table.n) == {2}  # the long one, and the one that would get it as another answer
    with pytest.raises(ValueError, match="fit into the context"):
        rewards_of(profile, reward_model, tokenizer, [long] * 4)


def test_every_probe_of_the_lab_deserves_less_than_the_chosen_answer(profile):
    pairs = load_preferences(profile)["test"]
    prompts, answers = list(pairs["prompt"])[:12], list(pairs["chosen"])[:12]
    chosen = gold_table(profile, prompts, answers).gold.mean()
    for name, _, make in probes.PROBES[1:]:
        worse = [make(answer, other) for answer, other in zip(answers, [*answers[6:], *answers[:6]], strict=True)]
        assert gold_table(profile, prompts, worse).gold.mean() < chosen, name


def test_examples_are_chosen_by_the_gain_and_the_seed_alone():
    gain = np.array([0.1, -2.0, 3.0, 0.0, 0.2, 0.3, -0.1, 0.05, 0.4, 0.15])
    shown = probes.chosen_by_rule(gain, seed=0)
    assert (shown["best gain"], shown["worst loss"]) == (2, 1)
    assert shown["median"] == 9  # 0.15, the upper of the two in the middle
    assert len(set(shown.values())) == 8 and list(shown)[3:] == [f"random {i}" for i in range(1, 6)]
    assert shown == probes.chosen_by_rule(gain, seed=0) != probes.chosen_by_rule(gain, seed=1)


def test_largest_disagreement_is_a_rise_in_reward_with_a_fall_in_gold():
    reward_gain = np.array([5.0, 1.5, 0.2, -3.0, 2.0])
    gold_gain = np.array([1.0, -1.2, -6.0, -6.0, -0.5])
    assert probes.largest_disagreement(reward_gain, gold_gain) == 1  # 2 falls further, 4 rises further
    assert probes.largest_disagreement(reward_gain, -gold_gain) == 0
