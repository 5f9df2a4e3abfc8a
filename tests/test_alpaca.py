"""Alpaca's rows as prompts and answers, the pairs and probes that are made of them, and who decides them."""

import dataclasses
import json
import os
from pathlib import Path

from rlhf import alpaca, models, outputs
from rlhf.profiles import load_profile
from rlhf.tokens import encode

import pytest

SAMPLE = Path(os.environ.get("RLHF_TEST_DATA", "")) / "alpaca" / "alpaca_en_demo.json"
ROWS = [
    {"instruction": f"Name number {i}.", "input": "in words" if i % 2 else "", "output": f"It is {i}."}
    for i in range(40)
]


@pytest.fixture
def small(profile_with_base):
    """The smoke profile with the settings of the recipe's, and the tokenizer of its base."""
    decoding = dataclasses.replace(profile_with_base.decoding, max_new_tokens=24)
    profile = dataclasses.replace(profile_with_base, decoding=decoding, dataset="own")
    return profile, models.load_tokenizer(profile)


def from_file(small, tmp_path, rows):
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return alpaca.load(dataclasses.replace(small[0], dataset=str(tmp_path / "rows.json")), small[1])


def test_input_stands_below_the_instruction_and_no_prompt_is_in_two_splits(small, tmp_path):
    splits = from_file(small, tmp_path, ROWS)
    found = {row["prompt"]: row["answer"] for split in splits.values() for row in split}
    assert len(found) == sum(map(len, splits.values())) == 40 and len(splits["test"]) == 8
    assert found["Name number 2."] == "It is 2." and found["Name number 3.\n\nin words"] == "It is 3."


def test_rows_that_cannot_be_used_or_are_too_long_are_counted_and_left_out(small, tmp_path, capsys):
    faulty = [{"instruction": "", "output": "x"}, {"instruction": "Say nothing.", "output": " "}]
    long = [{"instruction": f"Go on {i}.", "output": "word " * 60} for i in range(20)]
    splits = from_file(small, tmp_path, ROWS + faulty + long)
    said = capsys.readouterr().out
    assert "1 instruction is empty" in said and "1 output is empty" in said
    assert "are longer than 24 tokens and are left out" in said
    answers = [row["answer"] for split in splits.values() for row in split]
    assert len(answers) == 40 and max(len(ids) for ids in encode(small[1], answers)) < 24


def test_data_of_which_nothing_fits_say_what_to_raise(small, tmp_path):
    with pytest.raises(ValueError, match=r"no \w+ answer fits into 24 tokens; give more rows, or raise max_new_tokens"):
        from_file(small, tmp_path, [row | {"output": "word " * 60 + str(i)} for i, row in enumerate(ROWS)])


def test_data_of_another_form_and_data_that_cannot_be_fetched_are_named(small, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"rows\.json.*found: \['a', 'b'\]"):
        from_file(small, tmp_path, [{"a": "1", "b": "2"}])

    def unreachable(*_, **__):
        raise ConnectionError("no network.")

    monkeypatch.setattr("rlhf.download.fetch", unreachable)
    with pytest.raises(ConnectionError, match=r"no network.*set RLHF_ALPACA to a local file"):
        alpaca.load(dataclasses.replace(small[0], dataset="some/alpaca"), small[1])


def test_rows_of_our_own_are_distinct_and_the_same_for_a_seed(small):
    splits = alpaca.own_rows(120, seed=0)
    rows = [row for split in splits.values() for row in split]
    assert {split: len(part) for split, part in splits.items()} == {"train": 84, "validation": 12, "test": 24}
    assert len({row["prompt"] for row in rows}) == 120 and any("\n\n" in row["prompt"] for row in rows)
    assert rows == [row for split in alpaca.own_rows(120, seed=0).values() for row in split]
    assert len(alpaca.load(*small)["test"]) >= load_profile("alpaca_smoke").eval_prompts


@pytest.mark.skipif(not SAMPLE.exists(), reason="RLHF_TEST_DATA has no alpaca/alpaca_en_demo.json")
def test_real_rows_are_read_and_split(small, capsys):
    splits = alpaca.load(dataclasses.replace(small[0], dataset=str(SAMPLE)), small[1])
    said = capsys.readouterr().out
    assert "999 rows of the form: instruction, input and output" in said and "left out" in said
    assert all(len(part) for part in splits.values())


def test_answers_are_written_as_data_that_can_be_read_again(small):
    profile, tokenizer = small
    prompts, answers = [f"Say {i}.\n\nin words" for i in range(20)], [f"é {i}" for i in range(20)]
    alpaca.write_answers(profile, "rejected_data.jsonl", prompts, answers, written_by="base", temperature=1.0)
    file = outputs.evaluation_dir(profile) / "rejected_data.jsonl"
    first = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
    assert first == {
        "instruction": prompts[0],
        "input": "",
        "output": answers[0],
        "written_by": "base",
        "temperature": 1.0,
    }
    splits = alpaca.load(dataclasses.replace(profile, dataset=str(file)), tokenizer)
    assert {row["prompt"]: row["answer"] for split in splits.values() for row in split} == dict(
        zip(prompts, answers, strict=True)
    )


def test_pairs_without_a_difference_are_left_out():
    frame = alpaca.pairs(["p", "q", "r", "s"], ["a", "b", "", "d"], ["x", "b", "c", ""])
    assert frame.to_dict("records") == [{"prompt": "p", "chosen": "a", "rejected": "x"}]


def test_answers_of_others_are_all_of_them_at_other_places():
    answers = list("abcdefg")
    for others in alpaca.of_others(answers, times=2):
        assert sorted(others) == answers and not any(a == b for a, b in zip(answers, others, strict=True))
    assert len({tuple(others) for others in alpaca.of_others(answers, times=2)}) == 2
    assert alpaca.of_others(list("abcd")) == [list("cdab")]


def test_who_sees_the_answer_alone_decides_exchanged_prompts_by_chance():
    prompts, answers = ["one", "two", "three", "four"], ["1 1", "2", "3 3 3", "4 4 4 4"]
    probes = alpaca.probes(prompts, answers, base=["", "", "", ""], greedy=prompts, hot=["x y"] * 4)
    own = dict(zip(prompts, answers, strict=True))
    judges = {
        "length": alpaca.length_judge,
        "all": lambda asked, given: [own[prompt] == answer for prompt, answer in zip(asked, given, strict=True)],
    }
    share = alpaca.judged(judges, probes).set_index(["model", "metric"])["mean"]
    assert share["length", "against_base"] == 1 and share["length", "weaker_decoding"] == 0
    assert share["length", "other_prompt"] == 0.5 == share["length", "other_answer"]
    assert share["all", "other_prompt"] == share["all", "other_answer"] == 1
    assert set(share.index.get_level_values("metric")) == set(probes)
