"""Answers as tables in Markdown."""

import re
from html import unescape

from rlhf.evaluation import tables
from rlhf.lab import gold_score
from rlhf.lab.world import families, phrases
from rlhf.profiles import load_profile

import pytest
from markdown_it import MarkdownIt

LAB, REAL = load_profile("lab"), load_profile("gpt2")
PROMPT, ON_A_BUDGET = "How do I roast tofu slices?", "How do I roast tofu slices on a small budget?"
HEAT, COAT = "Heat the oven until it is fully hot.", "Coat the tofu slices with oil and salt."
OTHER = "Spread the pork chops across a metal tray."


def html(text):
    return MarkdownIt("commonmark").enable("table").render(text)


def cells(text):
    """The cells of the first table, row by row, as a reader sees them."""
    rows = re.findall(r"<tr>(.*?)</tr>", html(text), re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


@pytest.mark.parametrize("text", ["a|b", "**a** _b_ `c`", "<b>a</b> & c", "$x$ [a](b)", r"\| a", "# a", "~~a~~ a^2"])
def test_signs_of_an_answer_stand_in_a_table_as_they_are(text):
    _, (shown,) = cells(tables.table(["answer"], [[tables.literal(text)]]))
    assert "<" not in shown and unescape(shown) == text


def test_line_breaks_of_an_answer_do_not_end_its_row():
    assert cells(tables.table(["x", "y"], [[tables.literal("a\n\n b"), "c"]])) == [["x", "y"], ["a<br>b", "c"]]


@pytest.mark.parametrize(
    ("sentence", "error"),
    [
        (COAT, "repetition"),
        ("It is what it is.", "filler"),
        ("Tip: pour away the fat.", "garbled"),
        (OTHER, "wrong object"),
        ("Also: opening the oven too often causes trouble.", None),
    ],
)
def test_a_sentence_is_marked_with_the_error_that_it_makes(sentence, error):
    shown = tables.annotated(LAB, PROMPT, f"{HEAT} {COAT} {sentence} Tip: warm the plates while the oven cools.")
    assert error is None or f"**{sentence}** [{error}]" in shown


def test_advice_for_a_condition_that_was_not_asked_for_is_foreign_content():
    family = families()[0]
    advice = f"{phrases()['conditions']['on a small budget'][0]}, {family.conditions['on a small budget'][0]}."
    assert f"**{advice}** [foreign content]" in tables.annotated(LAB, PROMPT, f"{HEAT} {COAT} {advice}")
    assert f"**{advice}**" not in tables.annotated(LAB, ON_A_BUDGET, f"{HEAT} {COAT} {advice}")


def test_an_answer_without_error_is_shown_as_it_is():
    answer = f"{HEAT} {COAT} Tip: warm the plates while the oven cools."
    assert tables.annotated(LAB, PROMPT, answer) == answer


def test_steps_out_of_order_are_marked_where_the_order_breaks():
    answer = f"{COAT} Roast until the lower side is brown. {HEAT} Tip: warm the plates while the oven cools."
    assert f"**{HEAT}** [wrong order]" in tables.annotated(LAB, PROMPT, answer)


def test_what_an_answer_lacks_is_named_if_the_question_asks_for_it():
    assert tables.missing(PROMPT, f"{HEAT} {COAT}") == ["tip"]
    assert tables.missing(ON_A_BUDGET, HEAT[:-1]) == ["object", "order", "condition", "tip", "ended"]
    assert tables.annotated(LAB, PROMPT, f"{HEAT} {COAT}").endswith("<br>*Missing: tip.*")
    assert tables.annotated(LAB, PROMPT, "").startswith("<br>*Missing: object")


ANSWERS, REWARDS = {"sft": ["No.", COAT], "ppo": ["Yes.", f"{COAT} {COAT}"]}, {"sft": [0, 1.2341], "ppo": [0, -2]}


def example(profile=LAB):
    (entry,) = tables.examples(profile, {"random 1": 1}, ["Why?", PROMPT], ANSWERS, REWARDS)
    return entry


def test_an_example_holds_the_answers_to_the_chosen_prompt_with_their_scores():
    sft = {"answer": COAT, "reward": 1.234, "gold": gold_score(PROMPT, COAT)}
    assert example()["sft"] == sft and example()["ppo"]["reward"] == -2
    assert example(REAL) == {
        "chosen as": "random 1",
        "prompt": PROMPT,
        "sft": {"answer": COAT, "reward": 1.234},
        "ppo": {"answer": f"{COAT} {COAT}", "reward": -2},
    }


def test_answers_stand_side_by_side_with_reward_and_gold():
    text = tables.beside(LAB, example(), {"sft": "SFT", "ppo": "PPO"})
    assert text.startswith(f"**Random 1.** {PROMPT}\n\n")
    header, sft, ppo = cells(text)
    assert header == ["", "reward (logit)", "gold (points)", "answer"]
    assert sft[:3] == ["SFT", "1.23", f"{gold_score(PROMPT, COAT):.2f}"] and sft[3].startswith(COAT)
    assert f"<strong>{COAT}</strong> [repetition]" in ppo[3]


def test_real_data_is_shown_with_the_reward_alone():
    text = tables.beside(REAL, example(REAL), {"sft": "SFT", "ppo": "PPO"})
    assert cells(text) == [["", "reward (logit)", "answer"], ["SFT", "1.23", COAT], ["PPO", "-2.00", f"{COAT} {COAT}"]]


def test_points_of_the_sentences_sum_to_the_gold_score():
    answer = f"{HEAT} {COAT} {COAT} I like trains. {OTHER} Tip: warm the plates while the oven cools"
    header, *sentences, whole = cells(tables.dissection(PROMPT, answer))
    assert header == ["sentence", "parts", "points"] and len(sentences) == 6
    assert sentences[2] == [COAT, "repetition -0.75", "-0.75"]
    assert whole[0] == "<strong>gold score</strong>"
    assert float(whole[2]) == pytest.approx(gold_score(PROMPT, answer), abs=0.005)
    assert sum(float(row[2]) for row in sentences) == pytest.approx(float(whole[2]), abs=0.03)


def test_a_sentence_that_changes_nothing_says_so():
    assert cells(tables.dissection(PROMPT, f"To roast tofu slices, follow a clear plan. {HEAT}"))[1] == [
        "To roast tofu slices, follow a clear plan.",
        "nothing",
        "+0.00",
    ]
