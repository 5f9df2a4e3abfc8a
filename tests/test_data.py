"""The data: every way to give it, what is dropped and counted, and no prompt in two splits."""

import dataclasses
import json
import os
import re
from collections import Counter
from pathlib import Path

from rlhf import data, models
from rlhf.data import COLUMNS, drop_too_long, error_kinds, load_preferences, normalise_prompt
from rlhf.profiles import load_profile
from rlhf.template import format_prompt

import pandas as pd
import pytest
from conftest import run_python, stage_module
from datasets import Dataset, DatasetDict


def row(i, **changes):
    return {"prompt": f"Question {i}?", "chosen": f"Good {i}.", "rejected": f"Bad {i}.", **changes}


ROWS = [row(i) for i in range(60)]


def load(path):
    return load_preferences(dataclasses.replace(load_profile("gpt2"), dataset=str(path)))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def triples(rows):
    return list(zip(rows["prompt"], rows["chosen"], rows["rejected"], strict=True))


def all_triples(splits):
    return [triple for rows in splits.values() for triple in triples(rows)]


def as_jsonl(folder):
    return write_jsonl(folder / "pairs.jsonl", ROWS)


def as_json(folder):
    (folder / "pairs.json").write_text(json.dumps(ROWS))
    return folder / "pairs.json"


def as_folder(folder):
    (folder / "data").mkdir()
    write_jsonl(folder / "data" / "pairs.jsonl", ROWS)
    return folder / "data"


def as_saved_dataset(folder):
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_splits(folder):
    other = Dataset.from_list([row(1000), row(1001)])
    DatasetDict({"test": other, "train": Dataset.from_list(ROWS)}).save_to_disk(folder / "saved")
    return folder / "saved"


def as_csv(folder):
    pd.DataFrame(ROWS).to_csv(folder / "pairs.csv", index=False)
    return folder / "pairs.csv"


def as_tsv(folder):
    pd.DataFrame(ROWS).to_csv(folder / "pairs.tsv", index=False, sep="\t")
    return folder / "pairs.tsv"


def as_parquet(folder):
    pd.DataFrame(ROWS).to_parquet(folder / "pairs.parquet", index=False)
    return folder / "pairs.parquet"


def with_more_columns(folder):
    return write_jsonl(folder / "pairs.jsonl", [{"id": i, **row, "score": 0.5} for i, row in enumerate(ROWS)])


@pytest.mark.parametrize(
    "write", [as_jsonl, as_json, as_folder, as_saved_dataset, as_csv, as_tsv, as_parquet, with_more_columns]
)
def test_local_data_is_loaded_whole_and_in_three_splits(tmp_path, write):
    splits = load(write(tmp_path))
    assert list(splits) == ["train", "validation", "test"]
    assert all(rows.column_names == COLUMNS for rows in splits.values())
    assert sorted(all_triples(splits)) == sorted(triples(Dataset.from_list(ROWS)))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 55, "validation": 2, "test": 3}


def test_splits_of_the_datas_own_are_used_and_the_missing_one_is_taken_out_of_train(tmp_path):
    splits = load(as_saved_splits(tmp_path))
    assert splits["test"]["prompt"] == ["Question 1000?", "Question 1001?"]
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 58, "validation": 2, "test": 2}
    assert sorted(all_triples(splits)) == sorted(triples(Dataset.from_list([*ROWS, row(1000), row(1001)])))


def test_three_splits_of_the_datas_own_stay_as_they_are(tmp_path):
    parts = {"train": ROWS[:50], "dev": ROWS[50:54], "test": ROWS[54:]}
    for name, rows in parts.items():
        (tmp_path / "own").mkdir(exist_ok=True)
        write_jsonl(tmp_path / "own" / f"{name}.jsonl", rows)
    splits = load(tmp_path / "own")
    for ours, theirs in (("train", "train"), ("validation", "dev"), ("test", "test")):
        assert triples(splits[ours]) == triples(Dataset.from_list(parts[theirs]))


def test_data_with_a_test_split_alone_is_split_like_one_without(tmp_path):
    (tmp_path / "own").mkdir()
    write_jsonl(tmp_path / "own" / "test.jsonl", ROWS)
    assert [len(part) for part in load(tmp_path / "own").values()] == [55, 2, 3]


def test_equal_files_give_equal_splits(tmp_path):
    first = load(write_jsonl(tmp_path / "a.jsonl", ROWS))
    second = load(write_jsonl(tmp_path / "b.jsonl", ROWS))
    assert [triples(first[s]) for s in first] == [triples(second[s]) for s in second]


def test_test_rows_are_those_of_the_published_split(tmp_path):
    published = Dataset.from_list(ROWS).train_test_split(test_size=0.05, seed=42)["test"]
    assert triples(load(as_jsonl(tmp_path))["test"]) == triples(published)


def test_33143_rows_give_the_published_1658_test_rows(tmp_path):
    numbers = [str(i) for i in range(33_143)]
    answers = {side: [f"{side} {i}" for i in numbers] for side in ("chosen", "rejected")}
    Dataset.from_dict({"prompt": numbers, **answers}).save_to_disk(tmp_path / "rows")
    splits = load(tmp_path / "rows")
    assert len(splits["test"]) == 1658
    assert len(splits["validation"]) == round(0.03 * (33_143 - 1658))
    assert sum(map(len, splits.values())) == 33_143


@pytest.mark.parametrize("missing", COLUMNS)
def test_missing_column_is_named_with_those_that_were_found(tmp_path, missing):
    rows = [{("text" if key == missing else key): value for key, value in row.items()} for row in ROWS]
    with pytest.raises(ValueError, match=rf"column '{missing}' is not in data set.*pairs\.jsonl.*'text'"):
        load(write_jsonl(tmp_path / "pairs.jsonl", rows))


def dropped(capsys) -> str:
    printed = capsys.readouterr().out
    assert printed.count("dropped: ") == 1
    return printed.split("dropped: ")[1].split("\n")[0]


def test_clean_data_is_said_to_lose_nothing(tmp_path, capsys):
    load(as_jsonl(tmp_path))
    assert capsys.readouterr().out == (
        "pairs.jsonl has 60 rows of the form: prompt, chosen and rejected as text\n"
        "pairs.jsonl pairs: train 55, validation 2, test 3; dropped: nothing\n"
    )


def test_every_reason_for_dropping_is_counted_in_one_line(tmp_path, capsys):
    unusable = [row(60, chosen=""), row(61, prompt=" \n"), row(62, rejected=None), row(63, chosen=7)]
    equal = [row(64, chosen="Same.", rejected=" Same.\n"), row(65, chosen="S", rejected="S")]
    # Copies of a pair of each split: within it they are duplicates, elsewhere their prompt is held out.
    split = load(as_jsonl(tmp_path))
    copies = [dict(zip(COLUMNS, triples(split[name])[0], strict=True)) for name in split]
    capsys.readouterr()
    splits = load(write_jsonl(tmp_path / "more.jsonl", [*ROWS, *unusable, *equal, *copies]))
    printed = capsys.readouterr().out
    found = re.findall(r"(\d+) (.+?)(?:, (?=\d)|\n)", printed.split("dropped: ")[1].split("\n")[0] + "\n")
    counts = {fault: int(count) for count, fault in found}
    assert "  chosen is empty, for example more.jsonl line 61\n" in printed
    assert "  chosen equals rejected, for example more.jsonl line 65 ('Question 64?')\n" in printed
    assert {fault: counts[fault] for fault in ("chosen is empty", "prompt is empty", "rejected is empty")} == {
        "chosen is empty": 1,
        "prompt is empty": 1,
        "rejected is empty": 1,
    }
    assert counts["chosen is a number, not text"] == 1
    assert counts["chosen equals rejected"] == 2
    assert counts["duplicate pair"] + counts.get("prompt held out", 0) == 3
    assert sorted(all_triples(splits)) == sorted(triples(Dataset.from_list(ROWS)))


def pairs(*rows):
    return [data.Pair("a file", tuple(row.values())) for row in rows]


def test_two_pairs_of_one_prompt_both_count(capsys):
    rows = data._clean(
        {
            "train": pairs(row(0), row(0, chosen="Another good one."), row(0), row(0, prompt=" question 0? ")),
            "validation": pairs(row(1)),
            "test": pairs(row(2)),
        },
        "some/name",
    )
    assert triples(rows["train"]) == [
        ("Question 0?", "Good 0.", "Bad 0."),
        ("Question 0?", "Another good one.", "Bad 0."),
    ]
    assert dropped(capsys) == "2 duplicate pair"


def test_texts_are_stripped(tmp_path):
    rows = [row(i, prompt=f" Question {i}?\n", chosen=f"\tGood {i}. ", rejected=f"Bad {i}.\n") for i in range(60)]
    assert all_triples(load(write_jsonl(tmp_path / "pairs.jsonl", rows))) == all_triples(load(as_jsonl(tmp_path)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("How do I roast tofu?", "how do i ROAST Tofu?"),
        ("How do I roast tofu?", " How  do\tI roast\n\ntofu? "),
        ("Wie groß ist die Straße?", "WIE GROSS IST DIE STRASSE?"),
        ("A\u00a0hard space?", "a hard space?"),
    ],
)
def test_prompts_that_differ_only_in_case_or_white_space_are_the_same(first, second):
    assert first != second and normalise_prompt(first) == normalise_prompt(second)


def test_prompts_that_differ_in_a_word_or_a_sign_are_not_the_same():
    texts = ["roast tofu", "roast tofu?", "roast to fu", "roast tofus"]
    assert len(set(map(normalise_prompt, texts))) == len(texts)


def test_no_prompt_stands_in_two_splits_even_where_prompts_collide_only_after_normalisation(tmp_path, capsys):
    variants = [lambda text: text, str.upper, lambda text: f"  {text}\n", lambda text: text.replace(" ", " \t ")]
    rows = [
        row(i, prompt=variant(f"Question {i}?"), chosen=f"Good {i} {n}.")
        for i in range(50)
        for n, variant in enumerate(variants)
    ]
    splits = load(write_jsonl(tmp_path / "pairs.jsonl", rows))
    prompts = {name: {normalise_prompt(prompt) for prompt in part["prompt"]} for name, part in splits.items()}
    assert prompts["train"] and prompts["validation"] and prompts["test"]
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]
    # A split by row would put some into two splits: without that, this test would prove nothing.
    parts = Dataset.from_list(rows).train_test_split(test_size=data.TEST_SHARE, seed=data.SPLIT_SEED)
    by_row = [{normalise_prompt(prompt) for prompt in part["prompt"]} for part in parts.values()]
    assert by_row[0] & by_row[1]
    assert dropped(capsys) == "nothing" and sum(map(len, splits.values())) == len(rows)


def test_where_few_rows_would_be_lost_the_split_is_by_row_as_published_and_says_how_many_were(tmp_path, capsys):
    rows = [row(i) for i in range(1000)] + [row(i, chosen=f"Another {i}.") for i in range(100)]
    splits = load(write_jsonl(tmp_path / "pairs.jsonl", rows))
    published = Dataset.from_list(rows).train_test_split(test_size=0.05, seed=42)["test"]
    assert triples(splits["test"]) == triples(published)
    lost = len(rows) - sum(map(len, splits.values()))
    assert 0 < lost <= 0.05 * len(rows) and dropped(capsys) == f"{lost} prompt held out"


@pytest.mark.parametrize(("prompts", "each"), [(547, 6), (40, 50), (3, 30), (1000, 2), (500, 2)])
def test_at_least_95_of_100_usable_rows_survive_a_split_however_often_prompts_repeat(tmp_path, prompts, each):
    rows = [row(i, chosen=f"Good {n}.") for n in range(each) for i in range(prompts)]
    splits = load(write_jsonl(tmp_path / "pairs.jsonl", rows))
    assert sum(map(len, splits.values())) >= 0.95 * len(rows)
    assert len(splits["test"]) >= 0.05 * len(rows)


def test_a_held_out_prompt_leaves_train_and_never_test():
    splits = {
        "train": pairs(row(0), row(1), row(2)),
        "validation": pairs(row(1, chosen="Other."), row(2, chosen="Other.")),
        "test": pairs(row(2, chosen="Third.")),
    }
    cleaned = data._clean(splits, "name")
    assert {name: part["prompt"] for name, part in cleaned.items()} == {
        "train": ["Question 0?"],
        "validation": ["Question 1?"],
        "test": ["Question 2?"],
    }


@pytest.mark.parametrize(
    "rows",
    [
        [row(i, chosen="same", rejected="same") for i in range(20)],
        [row(i, chosen=" ") for i in range(20)],
        [row(i, prompt=i) for i in range(20)],
        [row(7) for _ in range(20)],
    ],
    ids=["all equal", "all empty", "all numbers", "all one pair"],
)
def test_data_of_which_nothing_usable_is_left_is_refused(tmp_path, rows):
    match = r"no usable \w+ row is left of data set .*pairs\.jsonl.*dropped: |1 distinct prompts can't be split"
    with pytest.raises(ValueError, match=match):
        load(write_jsonl(tmp_path / "pairs.jsonl", rows))


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_rows_than_splits_are_refused(tmp_path, count):
    with pytest.raises(ValueError, match=f"{count} rows can't be split"):
        load(write_jsonl(tmp_path / "pairs.jsonl", ROWS[:count]))


def test_three_rows_are_enough(tmp_path):
    assert [len(part) for part in load(write_jsonl(tmp_path / "pairs.jsonl", ROWS[:3])).values()] == [1, 1, 1]


def test_hub_data_without_a_network_is_an_error_that_says_what_to_do():
    code = """
from rlhf.data import load_preferences
from rlhf.profiles import load_profile
try:
    load_preferences(load_profile("gpt2"))
except ConnectionError as error:
    print(error)
"""
    printed = run_python(code, HF_HUB_OFFLINE="1", RLHF_DATASET="nobody/no-such-preferences")
    for part in ("'nobody/no-such-preferences'", "RLHF_DATASET", "local folder", "RLHF_PROFILE=lab"):
        assert part in printed


def test_lab_splits_have_the_sizes_of_the_profile(profile):
    splits = load_preferences(profile)
    assert tuple(map(len, splits.values())) == profile.lab.pairs
    assert all(part.column_names == COLUMNS for part in splits.values())
    prompts = Counter(normalise_prompt(prompt) for part in splits.values() for prompt in part["prompt"])
    assert max(prompts.values()) == 1


def test_lab_splits_depend_on_the_seed_alone(profile):
    first = all_triples(load_preferences(profile))
    assert first == all_triples(load_preferences(dataclasses.replace(profile, name="other", max_steps=9)))
    assert first != all_triples(load_preferences(dataclasses.replace(profile, seed=profile.seed + 1)))


def test_error_kinds_follow_the_rows_whatever_their_order(profile):
    rows = load_preferences(profile)["test"]
    table = data._lab_table(profile, "test")
    assert error_kinds(profile, rows) == list(table.error)
    assert error_kinds(profile, rows.select([5, 2, 9])) == [table.error[i] for i in (5, 2, 9)]


def test_error_kinds_of_real_data_are_unlabelled():
    assert error_kinds(load_profile("gpt2"), Dataset.from_list(ROWS)) == ["unlabelled"] * 60


def length(tokenizer, prompt, answer=""):
    return len(tokenizer(format_prompt(prompt) + answer)["input_ids"]) + 1  # and EOS


def test_rows_up_to_the_limit_stay_and_longer_ones_are_left_out_by_number(tokenizer, capsys):
    answers = ["one", "one two", "one two three four five six", "one two three"]
    rows = Dataset.from_list([row(i, prompt="Same?", chosen=a) for i, a in enumerate(answers)])
    limit = length(tokenizer, "Same?", "one two three")
    assert length(tokenizer, "Same?", answers[2]) > limit
    kept = drop_too_long(rows, tokenizer, limit, ("chosen",), "train examples")
    assert kept["chosen"] == ["one", "one two", "one two three"]
    assert capsys.readouterr().out == f"train examples: 1 of 4 rows are longer than {limit} tokens and are left out\n"
    assert len(drop_too_long(rows, tokenizer, limit - 1, ("chosen",), "train examples")) == 2


def test_a_row_is_too_long_if_one_of_its_answers_is(tokenizer):
    long = "word " * 30
    rows = Dataset.from_list([row(0), row(1, chosen=long), row(2, rejected=long)])
    limit = length(tokenizer, "Question 0?", "Good 0.") + 3
    assert drop_too_long(rows, tokenizer, limit, ("chosen", "rejected"), "pairs")["prompt"] == ["Question 0?"]
    assert drop_too_long(rows, tokenizer, limit, ("chosen",), "pairs")["prompt"] == ["Question 0?", "Question 2?"]
    assert len(drop_too_long(rows, tokenizer, limit, (), "prompts")) == 3


def test_without_answers_the_prompt_alone_counts(tokenizer, capsys):
    rows = Dataset.from_list([row(0, prompt="Short?"), row(1, prompt="A much longer question than that one?")])
    limit = length(tokenizer, "Short?")
    assert drop_too_long(rows, tokenizer, limit, (), "PPO prompts")["prompt"] == ["Short?"]
    assert "PPO prompts: 1 of 2 rows" in capsys.readouterr().out


def test_nothing_is_printed_where_every_row_fits(tokenizer, capsys):
    rows = Dataset.from_list(ROWS)
    assert triples(drop_too_long(rows, tokenizer, 100, ("chosen", "rejected"), "pairs")) == triples(rows)
    assert capsys.readouterr().out == ""


def test_data_of_which_no_row_fits_is_refused(tokenizer):
    with pytest.raises(ValueError, match="test pairs: no row fits into 3 tokens"):
        drop_too_long(Dataset.from_list(ROWS), tokenizer, 3, ("chosen",), "test pairs")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("To bake it, wait. Then eat.", "To bake it, wait."),
        ("Is it? It is!", "Is it?"),
        ("Wait 2.5 hours. Eat.", "Wait 2.5 hours."),
        ("One line.\nAnother.", "One line."),
        ("Cut off in the", "Cut off in the"),
        ("Whole.", "Whole."),
    ],
)
def test_first_sentence_ends_at_its_mark(text, first):
    assert data.first_sentence(text) == first


def test_ppo_prompts_are_the_distinct_prompts_of_training_in_the_template(profile_with_base):
    tokenizer = models.load_tokenizer(profile_with_base)
    prompts = stage_module("03_ppo_alignment/prepare_data.py")["get_ppo_prompts"](
        data.training_prompts(profile_with_base, tokenizer, 256), tokenizer
    )
    splits = load_preferences(profile_with_base)
    assert prompts.column_names == ["input_ids"]
    texts = tokenizer.batch_decode(list(prompts["input_ids"]))
    assert texts == [format_prompt(prompt) for prompt in splits["train"]["prompt"]]
    held_out = {format_prompt(p) for name in ("validation", "test") for p in splits[name]["prompt"]}
    assert not set(texts) & held_out


def test_ppo_prompts_stand_once_each_and_leave_room_for_an_answer(profile_with_base, monkeypatch, capsys):
    columns = {"prompt": ["Why?", "Why?", "word " * 240, "How?"], "chosen": ["a"] * 4, "rejected": ["b"] * 4}
    monkeypatch.setattr(data, "load_preferences", lambda _: {"train": Dataset.from_dict(columns)})
    tokenizer = models.load_tokenizer(profile_with_base)
    prompts = stage_module("03_ppo_alignment/prepare_data.py")["get_ppo_prompts"](
        data.training_prompts(profile_with_base, tokenizer, 256), tokenizer
    )
    assert tokenizer.batch_decode(list(prompts["input_ids"])) == [format_prompt("Why?"), format_prompt("How?")]
    assert "PPO prompts: 1 of 4 rows" in capsys.readouterr().out
    longest = max(map(len, prompts["input_ids"]))
    assert longest + profile_with_base.decoding.max_new_tokens <= tokenizer.model_max_length


def test_ppo_prompts_longer_than_asked_are_left_out_with_a_printed_line(profile_with_base, capsys):
    tokenizer = models.load_tokenizer(profile_with_base)
    everything = data.training_prompts(profile_with_base, tokenizer, 256)
    lengths = [len(tokenizer(format_prompt(prompt))["input_ids"]) for prompt in everything]
    limit = sorted(lengths)[len(lengths) // 2]
    kept = data.training_prompts(profile_with_base, tokenizer, limit)
    expected = [prompt for prompt, length in zip(everything, lengths, strict=True) if length <= limit]
    assert kept == expected and len(kept) < len(everything)
    assert f"longer than {limit} tokens" in capsys.readouterr().out


@pytest.mark.parametrize("answers", [(), ("chosen",)])
def test_context_of_the_model_is_a_limit_beside_the_one_that_is_given(tokenizer, answers, capsys):
    rows = Dataset.from_list([row(0), row(1, prompt="word " * 30)])
    assert len(drop_too_long(rows, tokenizer, 200, answers, "rows")) == 2
    tokenizer.model_max_length = 50
    assert drop_too_long(rows, tokenizer, 200, answers, "rows")["prompt"] == ["Question 0?"]
    assert capsys.readouterr().out == "rows: 1 of 2 rows are longer than 50 tokens and are left out\n"


FORMATS = Path(os.environ.get("RLHF_TEST_DATA", ""), "formats")
needs_formats = pytest.mark.skipif(not FORMATS.is_dir(), reason="RLHF_TEST_DATA has no formats/")


@needs_formats
@pytest.mark.parametrize(
    ("name", "form", "rows"),
    [
        ("hh.jsonl", "dialogues marked Human and Assistant", 5),
        ("conversational.jsonl", "lists of turns", 6),
        ("implicit_prompt.jsonl", "whole dialogues", 6),
        ("ultrafeedback.jsonl", "whole dialogues", 6),
        ("instruction_input.jsonl", "instruction, input, chosen", 6),
        ("alpaca.json", "for fine-tuning alone", 6),
        ("pairs.jsonl.gz", "as text", 6),
        ("own_splits", "as text", 6),
        ("repeated_prompts.jsonl", "as text", 18),
        ("special_token_text.jsonl", "as text", 4),
    ],
)
def test_form_that_people_bring_is_read_whole(name, form, rows, capsys):
    splits = load(FORMATS / name)
    printed = capsys.readouterr().out
    assert form in printed and "dropped: nothing" in printed and sum(map(len, splits.values())) == rows


@needs_formats
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("truncated_last_line.jsonl", r"line 6: not JSON .*cut off"),
        ("semicolon.csv", r"line 1: .* is one column; separate columns by commas"),
        ("utf16.csv", r"line 1: not UTF-8, it looks like UTF-16"),
    ],
)
def test_faulty_file_that_people_bring_is_named_with_its_line(name, fault):
    with pytest.raises(ValueError, match=re.escape(name) + "', " + fault):
        load(FORMATS / name)


@needs_formats
def test_half_of_a_surrogate_pair_costs_its_row_alone(capsys):
    assert sum(map(len, load(FORMATS / "lone_surrogate.jsonl").values())) == 5
    assert "1 chosen holds half of a surrogate pair" in capsys.readouterr().out
