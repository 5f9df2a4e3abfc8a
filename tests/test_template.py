"""The template: one text for all stages, with nothing at its border that merges into the answer."""

from rlhf.template import TEMPLATE, format_prompt, format_response

import pytest


def test_prompt_stands_in_the_published_template():
    expected = "### Instruction:\nHow does quantum computing work.\n\n### Response:\n"
    assert format_prompt("How does quantum computing work.") == expected


@pytest.mark.parametrize("prompt", ["  a question?\n", "\ta question?", "a question?  \n\n"])
def test_white_space_around_a_prompt_does_not_change_the_text(prompt):
    assert format_prompt(prompt) == format_prompt("a question?")


@pytest.mark.parametrize("prompt", ["with {braces} and {0} and {prompt}", "two\n\nparagraphs", "ünïcode 日本"])
def test_prompt_is_put_in_as_it_is(prompt):
    assert format_prompt(prompt) == "### Instruction:\n" + prompt + "\n\n### Response:\n"


def test_template_ends_in_a_newline_so_that_the_first_word_of_an_answer_keeps_its_label():
    assert TEMPLATE.endswith(":\n") and not TEMPLATE.endswith(" ")


def test_response_has_no_white_space_around_it_and_keeps_what_is_inside():
    assert format_response(" \n1. first\n\n2.  second \n") == "1. first\n\n2.  second"
    assert format_response("   ") == ""


def test_tokens_of_an_answer_are_the_same_alone_and_after_the_template(tokenizer):
    for answer in ("First, heat the oven.", "1. one\n2. two", "« oui »", '"quoted"', "a"):
        prompt = tokenizer(format_prompt("How do I roast tofu slices?"))["input_ids"]
        joined = tokenizer(format_prompt("How do I roast tofu slices?") + answer)["input_ids"]
        assert joined == prompt + tokenizer(answer)["input_ids"]
