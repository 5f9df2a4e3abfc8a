"""The forms in which people bring preferences, and the faults of single rows."""

from rlhf import forms
from rlhf.files import Row

import pytest

ASK, GOOD, BAD = "Why is the sky blue?", "Air scatters blue light most.", "It just is."
USER, ANSWER, OTHER = (
    {"role": role, "content": text} for role, text in (("user", ASK), ("assistant", GOOD), ("assistant", BAD))
)
SYSTEM, EARLIER = {"role": "system", "content": "Be short."}, {"role": "assistant", "content": "Hello."}
LONG = "System: Be short.\n\nUser: Why is the sky blue?\n\nAssistant: Hello.\n\nUser: Why is the sky blue?"
TURNS = [SYSTEM, USER, EARLIER, USER]
ONCE = f"\n\nHuman: {ASK}\n\nAssistant:"
BRIEF, PLAIN = f"System: Be short.\n\nUser: {ASK}", f"{ASK}\n\nAssistant:"
SHOWN = f"User: Hi\n\nAssistant: Hello.\n\nUser: {ASK}"
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why is the sky blue?\n\nAssistant:"


def read(values: dict):
    name, form = forms.find_form([Row("a", values)], "data")
    return name, form(values)


@pytest.mark.parametrize(
    ("values", "triple", "said"),
    [
        ({"prompt": ASK, "chosen": GOOD, "rejected": BAD}, (ASK, GOOD, BAD), "as text"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}, (ASK, GOOD, BAD), "lists of turns"),
        ({"prompt": TURNS, "chosen": [ANSWER], "rejected": [OTHER]}, (LONG, GOOD, BAD), "lists of turns"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, (ASK, GOOD, BAD), "whole dialogues"),
        ({"chosen": [*TURNS, ANSWER], "rejected": [*TURNS, OTHER]}, (LONG, GOOD, BAD), "whole dialogues"),
        ({"prompt": ASK, "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, (ASK, GOOD, BAD), "whole dialogues"),
        ({"prompt": ASK, "chosen": [ANSWER], "rejected": [OTHER]}, (ASK, GOOD, BAD), "whole dialogues"),
        ({"chosen": f"{HH} {GOOD}", "rejected": f"{HH} {BAD}"}, (SHOWN, GOOD, BAD), "marked Human and Assistant"),
        ({"instruction": ASK, "input": "", "chosen": GOOD, "rejected": BAD}, (ASK, GOOD, BAD), "instruction"),
        ({"instruction": "Say", "input": "x", "chosen": GOOD, "rejected": BAD}, ("Say\n\nx", GOOD, BAD), "instruction"),
        ({"instruction": ASK, "chosen": GOOD, "rejected": BAD}, (ASK, GOOD, BAD), "instruction"),
        ({"instruction": "Say", "input": "x", "output": GOOD}, ("Say\n\nx", GOOD, ""), "fine-tuning alone"),
        ({"instruction": ASK, "input": " ", "output": GOOD}, (ASK, GOOD, ""), "fine-tuning alone"),
        (
            {"instruction": ASK, "system": "Be short.", "history": [[ASK, "Hello."]], "chosen": GOOD, "rejected": BAD},
            (LONG, GOOD, BAD),
            "instruction",
        ),
        ({"instruction": ASK, "system": "", "history": [], "output": GOOD}, (ASK, GOOD, ""), "fine-tuning alone"),
        (
            {"chosen": f"Be short.\n\nHuman: {ASK}\n\nAssistant: {GOOD}", "rejected": f"Be short.{ONCE} {BAD}"},
            (BRIEF, GOOD, BAD),
            "marked Human and Assistant",
        ),
        ({"prompt": ONCE, "chosen": f" {GOOD}", "rejected": BAD}, (ASK, GOOD, BAD), "as text"),
        ({"prompt": HH, "chosen": GOOD, "rejected": BAD}, (SHOWN, GOOD, BAD), "as text"),
        ({"prompt": f"Be short.{ONCE}", "chosen": GOOD, "rejected": BAD}, (BRIEF, GOOD, BAD), "as text"),
        ({"prompt": f"{ASK}\n\nAssistant:", "chosen": GOOD, "rejected": BAD}, (PLAIN, GOOD, BAD), "as text"),
        ({"prompt": f"Human: {ASK}", "chosen": GOOD, "rejected": BAD}, (f"Human: {ASK}", GOOD, BAD), "as text"),
    ],
)
def test_every_form_gives_prompt_chosen_and_rejected(values, triple, said):
    name, found = read(values)
    assert found == triple and said in name


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"prompt": None, "chosen": GOOD, "rejected": BAD}, "prompt is empty"),
        ({"prompt": ASK, "chosen": " \n", "rejected": BAD}, "chosen is empty"),
        ({"prompt": [USER], "chosen": GOOD, "rejected": BAD}, "prompt is a list, not text"),
        ({"prompt": ASK, "chosen": 7, "rejected": BAD}, "chosen is a number, not text"),
        ({"prompt": ASK, "chosen": True, "rejected": BAD}, "chosen is true or false, not text"),
        ({"prompt": ASK, "chosen": {"text": GOOD}, "rejected": BAD}, "chosen is an object, not text"),
        ({"prompt": ASK, "chosen": "half \ud83d", "rejected": BAD}, "chosen holds half of a surrogate pair"),
    ],
)
def test_the_fault_of_a_row_is_named_for_what_it_is(values, fault):
    _, form = forms.find_form([Row("a", {"prompt": ASK, "chosen": GOOD, "rejected": BAD})], "data")
    with pytest.raises(forms.RowError, match=fault):
        form(values)


@pytest.mark.parametrize(
    ("chosen", "rejected", "fault"),
    [
        ([USER, ANSWER], [USER, OTHER, USER], "rejected has other turns than one answer"),
        ([USER, ANSWER, USER, ANSWER], [USER, OTHER, USER, ANSWER], "chosen has other turns than one answer"),
        ([ANSWER, ANSWER], [ANSWER, OTHER], "the prompt does not end with a user's turn"),
        ([], [USER, OTHER], "chosen is empty"),
        ([USER, {"role": "tool", "content": "x"}], [USER, OTHER], "turn of another role"),
        ([USER, {"role": "assistant", "content": ["x"]}], [USER, OTHER], "content is a list, not text"),
        ("text", [USER, OTHER], "chosen is no list of turns"),
    ],
)
def test_the_fault_of_a_dialogue_is_named_for_what_it_is(chosen, rejected, fault):
    _, form = forms.find_form([Row("a", {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]})], "data")
    with pytest.raises(forms.RowError, match=fault):
        form({"chosen": chosen, "rejected": rejected})


def test_dialogues_that_are_equal_are_equal_answers_which_are_counted_as_such():
    _, (prompt, chosen, rejected) = read({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]})
    assert (prompt, chosen) == (ASK, GOOD) and chosen == rejected


def test_the_form_is_that_of_most_rows():
    rows = [Row("a", {"prompt": ASK, "chosen": GOOD, "rejected": BAD})] * 3
    rows.insert(0, Row("b", {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}))
    assert forms.find_form(rows, "data")[0] == "prompt, chosen and rejected as text"


def test_history_that_is_none_is_named():
    _, form = forms.find_form([Row("a", {"instruction": ASK, "output": GOOD})], "data")
    for history, fault in (([["a", "b", "c"]], "something else than pairs"), ([["a", 7]], "is a number, not text")):
        with pytest.raises(forms.RowError, match=f"history (has )?{fault}"):
            form({"instruction": ASK, "output": GOOD, "history": history})


def test_rows_without_an_answer_do_not_hide_the_form_of_the_others():
    rows = [Row("a", {"source": "hh"}), Row("b", {"chosen": f"{HH} {GOOD}", "rejected": f"{HH} {BAD}"})]
    name, form = forms.find_form(rows, "data")
    assert name == "dialogues marked Human and Assistant" and form(rows[1].values) == (SHOWN, GOOD, BAD)
    with pytest.raises(forms.RowError, match="chosen is empty"):
        form(rows[0].values)
