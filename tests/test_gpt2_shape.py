"""GPT-2's own tokenizer, width and vocabulary, and real preference pairs: what nobody here made.

RLHF_TEST_DATA names a folder with gpt2_tokenizer/{vocab.json,merges.txt}, preference_pairs/pairs.jsonl (rows of prompt,
chosen, rejected) and dahoas/published_examples.json (rows of prompt in the template and ground_truth). Without it these
tests are skipped.
"""

import dataclasses
import json
import os
from pathlib import Path

from rlhf import generation, models, sft
from rlhf.data import drop_too_long, load_preferences, normalise_prompt
from rlhf.profiles import load_profile
from rlhf.reward.scoring import encode, score
from rlhf.template import format_prompt, format_response

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Tokenizer

NEEDED = ("gpt2_tokenizer/vocab.json", "gpt2_tokenizer/merges.txt", "preference_pairs/pairs.jsonl")
PUBLISHED = "dahoas/published_examples.json"
FOLDER = os.environ.get("RLHF_TEST_DATA", "")
MISSING = [name for name in (*NEEDED, PUBLISHED) if not (Path(FOLDER) / name).is_file()]

pytestmark = [
    pytest.mark.usefixtures("own_datasets_cache"),
    pytest.mark.skipif(not FOLDER, reason="RLHF_TEST_DATA is not set: no real tokenizer and pairs to test with"),
    pytest.mark.skipif(bool(FOLDER and MISSING), reason=f"RLHF_TEST_DATA has no {', '.join(MISSING)}"),
]

QUESTION = "How does quantum computing work."
PROMPT_IDS = [21017, 46486, 25, 198, 2437, 857, 14821, 14492, 670, 13, 198, 198, 21017, 18261, 25, 198]
CONTEXT = 1024


def gpt2_tokenizer():
    return GPT2Tokenizer.from_pretrained(Path(FOLDER) / "gpt2_tokenizer", model_max_length=CONTEXT)


@pytest.fixture(scope="module")
def local_gpt2(tmp_path_factory) -> Path:
    """A folder as RLHF_MODEL takes it: random weights of GPT-2's width and vocabulary, with 2 layers."""
    folder = tmp_path_factory.mktemp("gpt2_shape")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=2)).save_pretrained(folder)
    gpt2_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(local_gpt2, tmp_path_factory):
    """The base model and tokenizer as the first notebook prepares them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_OUTPUTS", str(tmp_path_factory.mktemp("gpt2_outputs")))
        profile = dataclasses.replace(load_profile("gpt2"), model=str(local_gpt2))
        model, tokenizer = models.prepare_base(profile)
        yield model, tokenizer, models.load_tokenizer(profile), models.load_base(profile)


@pytest.fixture
def tokenizer(prepared):
    return prepared[1]


@pytest.fixture(scope="module")
def raw_pairs():
    lines = (Path(FOLDER) / "preference_pairs" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def splits(monkeypatch):
    monkeypatch.setenv("RLHF_DATASET", str(Path(FOLDER) / "preference_pairs" / "pairs.jsonl"))
    return load_preferences(load_profile("gpt2"))


@pytest.fixture(scope="module")
def published():
    return json.loads((Path(FOLDER) / PUBLISHED).read_text(encoding="utf-8"))


def test_template_has_the_tokens_of_gpt2():
    assert gpt2_tokenizer()(format_prompt(QUESTION))["input_ids"] == PROMPT_IDS


def test_pad_token_changes_no_token_of_a_text(tokenizer):
    assert tokenizer(format_prompt(QUESTION))["input_ids"] == PROMPT_IDS


def test_pad_token_is_added_and_the_model_resized_in_the_saved_base_too(prepared):
    model, tokenizer, saved_tokenizer, saved_model = prepared
    assert gpt2_tokenizer().pad_token is None and len(gpt2_tokenizer()) == 50_257
    for each in (tokenizer, saved_tokenizer):
        assert (len(each), each.pad_token_id, each.eos_token_id) == (50_258, 50_257, 50_256)
    for each in (model, saved_model):
        rows = each.get_input_embeddings().weight
        assert rows.shape == (50_258, 768)
        assert each.get_output_embeddings().weight is rows
        assert (each.config.pad_token_id, each.config.eos_token_id) == (50_257, 50_256)
        torch.testing.assert_close(rows[-1], rows[:-1].mean(dim=0))


@torch.no_grad()
def test_logits_of_gpt2s_own_tokens_do_not_change(prepared, local_gpt2):
    ids = torch.tensor([PROMPT_IDS])
    before = AutoModelForCausalLM.from_pretrained(local_gpt2).eval()(input_ids=ids).logits
    after = prepared[0](input_ids=ids).logits
    torch.testing.assert_close(after[..., :50_257], before)


def test_the_114_real_pairs_are_loaded_cleaned_and_split(splits, raw_pairs, capsys):
    assert len(raw_pairs) == 114
    usable = {(row["prompt"].strip(), row["chosen"].strip(), row["rejected"].strip()) for row in raw_pairs}
    loaded = [
        row for part in splits.values() for row in zip(part["prompt"], part["chosen"], part["rejected"], strict=True)
    ]
    assert set(loaded) <= usable and len(set(loaded)) == len(loaded) >= 100
    assert len(splits["test"]) >= 5 and len(splits["validation"]) >= 1
    prompts = [{normalise_prompt(prompt) for prompt in part["prompt"]} for part in splits.values()]
    assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]


def test_pairs_longer_than_the_context_are_counted_and_left_out(splits, tokenizer, capsys):
    rows = splits["train"]
    capsys.readouterr()
    longest = [
        max(map(len, encode(tokenizer, [row["prompt"]] * 2, [row["chosen"], row["rejected"]], [True] * 2)))
        for row in rows
    ]
    for limit in (CONTEXT, sorted(longest)[len(longest) // 2]):
        fitting = drop_too_long(rows, tokenizer, limit, ("chosen", "rejected"), "train pairs")
        dropped = sum(length > limit for length in longest)
        assert len(fitting) == len(rows) - dropped
        printed = capsys.readouterr().out
        assert printed.startswith(f"train pairs: {dropped} of {len(rows)} rows") if dropped else printed == ""
    assert dropped > 0


def test_text_longer_than_the_context_is_named_by_scoring_and_answering(prepared, tokenizer, splits):
    row = splits["train"][0]
    long = " ".join([row["chosen"]] * 40)
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=50_258, num_labels=1, pad_token_id=50_257)
    reward_model = GPT2ForSequenceClassification(config)
    with pytest.raises(ValueError, match=r"tokens with its prompt, more than .*context of 1024"):
        score(reward_model, tokenizer, [row["prompt"]], [long], [True])
    assert score(reward_model, tokenizer, [row["prompt"]], [row["chosen"][:500]], [True]).shape == (1,)
    with pytest.raises(ValueError, match="doesn't fit into the context of 1024"):
        generation.generate_answers(prepared[0], tokenizer, [long], max_new_tokens=4, batch_size=1)


def test_tokens_of_a_response_are_the_same_alone_and_after_the_template(tokenizer, splits, published):
    answers = [answer for part in splits.values() for side in ("chosen", "rejected") for answer in part[side]]
    answers += [row["ground_truth"] for row in published]
    texts = [format_response(answer) for answer in answers]
    joined = tokenizer([format_prompt(QUESTION) + text for text in texts], verbose=False)["input_ids"]
    alone = tokenizer(texts, verbose=False)["input_ids"]
    assert joined == [PROMPT_IDS + ids for ids in alone]


def test_tokens_of_a_prompt_are_the_same_with_and_without_its_response(tokenizer, splits):
    rows = splits["train"]
    columns = {"prompt": [format_prompt(p) for p in rows["prompt"]], "completion": list(rows["chosen"])}
    tokenized = sft.tokenize(columns, tokenizer)
    for prompt, answer, ids, labels in zip(*columns.values(), *tokenized.to_dict().values(), strict=True):
        learned = [label for label in labels if label != sft.IGNORED]
        assert tokenizer.decode(ids) == prompt + answer + tokenizer.eos_token
        assert tokenizer.decode(learned) == answer + tokenizer.eos_token


def test_prompts_of_the_published_examples_stand_in_our_template(published):
    assert len(published) == 8
    for row in published:
        question = row["prompt"].removeprefix("### Instruction:\n").removesuffix("\n\n### Response:\n")
        assert len(question) < len(row["prompt"]) and format_prompt(question) == row["prompt"]
