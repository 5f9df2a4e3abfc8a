"""The gold score of answers whose every part is computed by hand."""

import random

from rlhf.lab import WEIGHTS, gold_agreement, gold_parts, gold_score, gold_table
from rlhf.lab.world import POINTS, capitalise, families, fill, phrases, questions
from rlhf.profiles import load_profile

import numpy as np
import pytest
from datasets import Dataset

ASKED = [q for q in questions() if (q.activity.verb, q.object) == ("roast", "tofu slices")]
FAMILY = families()[0]
ROAST = ASKED[0].activity
GRILL = FAMILY.activities[1]
PLANT = families()[1].activities[0]
TOFU, OTHER = "tofu slices", "pork chops"
STEPS = [step.format(o=TOFU) for step in ROAST.steps]
CONDITION = "in a small apartment"

WITHOUT = {q.kind: q.text for q in ASKED if q.condition is None}
WITH = {q.kind: q.text for q in ASKED if q.condition == CONDITION}
MOST_WITH, MOST_WITHOUT, LEAST = 7.5, 6.75, -6.1

NOTHING = dict.fromkeys(WEIGHTS, 0.0)


def parts(prompt, response):
    """The parts in units of their weights: shares and counts, as they are written in the tests."""
    return {name: value / WEIGHTS[name] for name, value in gold_parts(prompt, response).items()}


def expect(prompt, response, **values):
    assert parts(prompt, response) == pytest.approx({**NOTHING, **values})


def sentences(*texts):
    return " ".join(f"{capitalise(text)}." for text in texts)


def opening(kind, object_=TOFU, activity=ROAST, number=0):
    return fill(phrases()["openings"][kind][number], activity, object_)


def good(kind, condition=CONDITION, points=None):
    """The best answer to a question: everything asked for, in order, the condition and a tip."""
    field, complete = POINTS[kind]
    facts = STEPS[:complete] if kind == "how" else getattr(ROAST, field)[:complete]
    if kind == "need":
        facts = [f"you will want {', '.join(facts[:-1])} and {facts[-1]}"]
    elif kind == "avoid":
        facts = [f"{fact} causes trouble" for fact in facts]
    answer = [opening(kind), sentences(*facts)]
    if condition:
        answer.append(f"{phrases()['conditions'][condition]}, {FAMILY.conditions[condition][0]}.")
    return " ".join([*answer, f"Tip: {ROAST.tips[0]}."])


GOOD = {"object": 1, "activity": 1, "completeness": 1, "order": 1, "tip": 1, "ended": 1}


@pytest.mark.parametrize("kind", ["how", "avoid", "need"])
def test_best_answer_to_a_question_with_a_condition_reaches_the_documented_maximum(kind):
    expect(WITH[kind], good(kind), **GOOD, condition=1)
    assert gold_score(WITH[kind], good(kind)) == MOST_WITH


@pytest.mark.parametrize("kind", POINTS)
def test_best_answer_to_a_question_without_a_condition_reaches_the_documented_maximum(kind):
    expect(WITHOUT[kind], good(kind, condition=None), **GOOD)
    assert gold_score(WITHOUT[kind], good(kind, condition=None)) == MOST_WITHOUT


def test_weights_add_up_to_the_documented_maximum_and_minimum():
    assert sum(weight for weight in WEIGHTS.values() if weight > 0) == MOST_WITH
    assert MOST_WITH - WEIGHTS["condition"] == MOST_WITHOUT
    assert 3 * WEIGHTS["repetition"] + 4 * WEIGHTS["filler"] + 3 * WEIGHTS["foreign"] == pytest.approx(LEAST)


def test_worst_answer_reaches_the_documented_minimum():
    nonsense = " ".join(f"Word {word} again. Word {word} again." for word in ("aa", "bb", "cc", "dd"))
    response = f"{nonsense} Pork chops and lamb steaks and salmon fillets"
    expect(WITH["how"], response, repetition=3, filler=4, foreign=3)
    assert gold_score(WITH["how"], response) == LEAST


def test_every_part_of_a_mixed_answer_as_counted_by_hand():
    response = (
        "To roast tofu slices, follow a clear plan. "  # object 1
        f"First, {STEPS[0]}. "  # own 1, point 0
        f"Next, {STEPS[2]}. "  # object 2, own 2, point 2: "{o}" stands in this step
        f"Then {STEPS[1]}. "  # object 3, own 3, point 1: out of order
        f"{sentences(GRILL.tips[0])} "  # foreign 1
        "I like trains. "  # filler 1
        "Pork chops are nice"  # other object: foreign 2, filler 2; does not end
    )
    assert ["{o}" in step for step in ROAST.steps[:3]] == [False, True, True]
    expect(WITH["how"], response, object=3 / 4, activity=3 / 4, completeness=3 / 4, order=0, filler=2, foreign=2)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6])
def test_completeness_counts_distinct_steps_up_to_four(count):
    got = parts(WITHOUT["how"], " ".join([opening("how"), *(f"{capitalise(s)}." for s in STEPS[:count])]))
    assert got["completeness"] == min(count, 4) / 4
    assert got["order"] == (count >= 2)


@pytest.mark.parametrize(("kind", "field"), [("why", "reasons"), ("avoid", "mistakes"), ("need", "tools")])
def test_only_facts_of_the_kind_that_was_asked_for_make_an_answer_complete(kind, field):
    facts = getattr(ROAST, field)
    expect(WITHOUT[kind], sentences(*facts[:2]), activity=1, completeness=2 / 3, order=1, ended=1)
    expect(WITHOUT[kind], sentences(STEPS[0], STEPS[3]), activity=1, ended=1)
    for other in set(POINTS) - {kind, "how"}:
        assert parts(WITHOUT[other], sentences(*facts))["completeness"] == 0


def test_order_matters_for_steps_and_for_nothing_else():
    assert parts(WITHOUT["how"], sentences(STEPS[0], STEPS[3], STEPS[5]))["order"] == 1
    assert parts(WITHOUT["how"], sentences(STEPS[3], STEPS[0], STEPS[5]))["order"] == 0
    assert parts(WITHOUT["why"], sentences(*reversed(ROAST.reasons)))["order"] == 1


def test_object_is_the_share_of_mentions_that_are_right():
    assert parts(WITHOUT["how"], "Tofu slices.")["object"] == 1
    got = parts(WITHOUT["how"], "Tofu slices, pork chops, lamb steaks and tofu slices.")
    assert (got["object"], got["foreign"]) == (0.5, 2)
    assert parts(WITHOUT["how"], sentences(STEPS[0]))["object"] == 0


def test_part_of_an_object_name_is_no_mention():
    assert parts(WITHOUT["how"], "Tofu. Slices. Mytofu slicess.")["object"] == 0


def test_facts_of_another_activity_are_foreign_even_with_the_right_object():
    response = sentences(*(step.format(o=TOFU) for step in GRILL.steps[:3]))
    mentions = sum("{o}" in step for step in GRILL.steps[:3])
    expect(WITHOUT["how"], response, object=float(mentions > 0), ended=1, foreign=3)


@pytest.mark.parametrize("asked", [WITHOUT["how"], WITH["how"]])
def test_advice_for_a_condition_that_was_not_asked_for_is_foreign(asked):
    other = sentences(FAMILY.conditions["during the winter"][0])
    expect(asked, other, ended=1, foreign=1)


def test_condition_is_answered_by_its_own_advice_once():
    for advice in FAMILY.conditions[CONDITION]:
        expect(WITH["how"], f"Since space is tight, {advice}.", condition=1, ended=1)
    both = sentences(*FAMILY.conditions[CONDITION])
    expect(WITH["how"], both, condition=1, ended=1)


def test_tip_of_the_activity_counts_once_and_that_of_another_is_foreign():
    expect(WITHOUT["how"], f"Tip: {ROAST.tips[0]}. Tip: {ROAST.tips[1]}.", activity=1, tip=1, ended=1)
    expect(WITHOUT["how"], f"Tip: {GRILL.tips[0]}.", foreign=1, ended=1)


@pytest.mark.parametrize("ending", [".", "!", "?", ". \n"])
def test_finished_sentence_ends_in_a_sign(ending):
    expect(WITHOUT["how"], STEPS[0] + ending, activity=1, completeness=1 / 4, ended=1)


@pytest.mark.parametrize("ending", ["", ",", " and then"])
def test_unfinished_sentence_earns_nothing_for_its_end(ending):
    expect(WITHOUT["how"], STEPS[0] + ending, activity=1, completeness=1 / 4)


@pytest.mark.parametrize(("times", "counted"), [(1, 0), (2, 1), (3, 2), (4, 3), (9, 3)])
def test_each_repeated_sentence_costs_up_to_three(times, counted):
    got = parts(WITHOUT["how"], sentences(*[STEPS[0]] * times))
    assert got["repetition"] == counted
    assert got["completeness"] == 1 / 4


def test_four_words_twice_in_one_sentence_are_a_repetition():
    assert parts(WITHOUT["how"], "We like this old song, we like this old song.")["repetition"] == 1
    assert parts(WITHOUT["how"], "We like this song, we like this one.")["repetition"] == 0


@pytest.mark.parametrize(("count", "counted"), [(0, 0), (1, 1), (4, 4), (7, 4)])
def test_each_sentence_of_filler_costs_up_to_four(count, counted):
    response = " ".join([opening("how"), *phrases()["filler"][:count]])
    expect(WITHOUT["how"], response, object=1, ended=1, filler=counted)


@pytest.mark.parametrize("kind", POINTS)
def test_every_opening_about_the_thing_asked_for_is_no_filler(kind):
    for number in range(len(phrases()["openings"][kind])):
        assert parts(WITHOUT[kind], opening(kind, number=number))["filler"] == 0
        about_other = parts(WITHOUT[kind], opening(kind, activity=GRILL, number=number))
        assert about_other["filler"] == 1 or "{verb}" not in phrases()["openings"][kind][number]


def test_every_fact_of_the_world_is_found_with_any_marker_and_belongs_to_its_activity():
    rng = random.Random(0)
    prompts = {(q.activity.verb, q.object): q.text for q in questions() if q.kind == "how" and not q.condition}
    markers = ["", "First, ", "Next, ", "Then ", "After that, ", "Finally, ", "Tip: ", "Instead, "]
    for family in families():
        for i, activity in enumerate(family.activities):
            name = rng.choice(family.objects)
            facts = [f for field in ("steps", "reasons", "mistakes", "tools", "tips") for f in getattr(activity, field)]
            for fact in facts:
                text = f"{rng.choice(markers)}{fact.format(o=name)}."
                own = gold_parts(prompts[activity.verb, name], text)
                assert own["activity"] == WEIGHTS["activity"] and own["foreign"] == 0 == own["filler"], text
                neighbor = family.activities[i - 1]
                other = gold_parts(prompts[neighbor.verb, name], text)
                assert other["activity"] == 0 and other["foreign"] == WEIGHTS["foreign"], text


def worse_answers():
    how = sentences(*STEPS[:4])
    start = f"{opening('how')} "
    tip = f" Tip: {ROAST.tips[0]}."
    return {
        "off topic": sentences(*(s.format(o="rose bushes") for s in PLANT.steps[:4])),
        "wrong object": good("how", None).replace(TOFU, OTHER),
        "wrong action": sentences(*(s.format(o=TOFU) for s in GRILL.steps[:4])),
        "rambling": start + " ".join(phrases()["filler"][:5]),
        "evasive": " ".join(phrases()["evasive"][:5]),
        "generic": start + " ".join(fill(s, ROAST, TOFU) for s in phrases()["generic"][:5]),
        "repetitive": start + how + f" {sentences(*[STEPS[3]] * 3)}" + tip,
        "cut off": (start + how)[:-12],
        "fewer steps": start + sentences(STEPS[0]) + tip,
        "disordered": start + sentences(STEPS[2], STEPS[0], STEPS[3], STEPS[1]) + tip,
    }


@pytest.mark.parametrize("kind", worse_answers())
def test_each_kind_of_error_scores_lower_than_a_good_answer(kind):
    best = gold_score(WITHOUT["how"], good("how", None))
    assert gold_score(WITHOUT["how"], worse_answers()[kind]) <= best - 0.9


def test_errors_of_relevance_score_lower_than_errors_of_form():
    scores = {kind: gold_score(WITHOUT["how"], answer) for kind, answer in worse_answers().items()}
    relevance = [scores[kind] for kind in ("off topic", "wrong object", "wrong action")]
    form = [scores[kind] for kind in ("cut off", "fewer steps", "disordered")]
    assert max(relevance) < min(form)


def test_case_punctuation_and_line_breaks_between_words_do_not_count():
    answer = good("how")
    score = gold_score(WITH["how"], answer)
    assert gold_score(WITH["how"], answer.upper()) == score
    assert gold_score(WITH["how"], answer.lower()) == score
    assert gold_score(WITH["how"], answer.replace(",", " ,")) == score
    assert gold_score(WITH["how"], answer.replace(". ", ".\n")) == score
    assert gold_score(WITH["how"], answer.replace(".", "!")) == score
    assert gold_score(WITH["how"], answer.replace(".", "?")) == score
    assert gold_score(WITH["how"].upper(), answer) == score


BROKEN = {
    "empty": "",
    "white space": " \n\t\n ",
    "signs": "... !!! ??? ### $$ ()[]{}",
    "unicode": "日本語のテキスト。 Ünïcode — «naïve» 🙂 \u202e\u200b",
    "lone surrogate": "a \ud800 b.",
    "control characters": "\x00\x01 \x1b[31m.\r\n",
    "braces": "{o} {verb} {} @ @@ @.",
    "markers only": "First, next, then, finally. Tip: First, second.",
    "one letter": "a",
    "no spaces": "tofuslicesroast" * 200,
    "broken facts": " ".join(word for step in STEPS for word in step.split()[::-1]),
    "template": "### Instruction:\nHow?\n\n### Response:\n",
    "very long": "then heat the oven until it is fully hot " * 20_000,
    "many sentences": "Roast. " * 20_000,
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("kind", POINTS)
def test_any_text_gets_a_score_between_the_documented_bounds(kind, name):
    score = gold_score(WITHOUT[kind], BROKEN[name])
    assert LEAST <= score <= MOST_WITHOUT


@pytest.mark.parametrize("name", ["empty", "white space", "signs"])
def test_text_without_a_word_counts_as_all_filler(name):
    ended = float(BROKEN[name].rstrip().endswith("."))
    expect(WITHOUT["how"], BROKEN[name], filler=4, ended=ended)


def test_random_pieces_of_answers_stay_in_bounds_and_their_parts_sum_to_the_score():
    rng = random.Random(1)
    words = f"{good('how')} {good('avoid')} {' '.join(phrases()['filler'])} pork chops rose bushes".split()
    for _ in range(300):
        question = rng.choice(questions())
        text = " ".join(rng.choices(words, k=rng.randrange(60)))
        got = gold_parts(question.text, text)
        assert list(got) == list(WEIGHTS)
        assert gold_score(question.text, text) == pytest.approx(sum(got.values()), abs=1e-6)
        assert LEAST <= gold_score(question.text, text) <= (MOST_WITH if question.condition else MOST_WITHOUT)


@pytest.mark.parametrize("judge", [gold_score, gold_parts])
def test_prompt_that_is_no_question_of_the_world_is_refused(judge):
    with pytest.raises(ValueError, match="not a question of the lab world"):
        judge("What is the capital of France?", "Paris.")


def test_agreement_is_one_zero_or_half_by_the_gold_scores_of_a_pair():
    best, poor = good("how", None), "It is what it is."
    rows = {"prompt": [WITHOUT["how"]] * 3, "chosen": [best, poor, poor], "rejected": [poor, best, poor]}
    assert gold_agreement(load_profile("smoke"), Dataset.from_dict(rows)).tolist() == [1, 0, 0.5]


def test_table_holds_the_parts_and_their_sum():
    prompts, responses = [WITHOUT["how"], WITH["how"]], [good("how", None), "Broken"]
    table = gold_table(load_profile("smoke"), prompts, responses)
    assert list(table.columns) == [*WEIGHTS, "gold"]
    assert table.gold.tolist() == pytest.approx([gold_score(p, r) for p, r in zip(prompts, responses, strict=True)])


def test_real_data_has_no_gold_score():
    real = load_profile("gpt2")
    rows = Dataset.from_dict({"prompt": ["Why?", "How?"], "chosen": ["a", "b"], "rejected": ["c", "d"]})
    assert np.isnan(gold_agreement(real, rows)).tolist() == [True, True]
    assert gold_table(real, rows["prompt"], rows["chosen"]).empty
