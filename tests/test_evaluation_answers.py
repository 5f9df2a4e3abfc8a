"""The evaluation that every stage shares: which prompts, which decodings, which rows are written."""

import dataclasses

from rlhf import generation, models, outputs
from rlhf.data import load_preferences
from rlhf.evaluation import answers as evaluation
from rlhf.generation import Answer

import pytest

PROMPTS = ["Why?", "How do I grill?"]


@pytest.fixture
def options_of(profile_with_base, monkeypatch):
    """Call evaluation.decode and return the options that reach the decoder."""
    seen = {}
    monkeypatch.setattr(generation, "generate_answers", lambda *args, **options: seen.update(options) or [])

    def call(decoding):
        evaluation.decode(profile_with_base, None, None, PROMPTS, decoding)
        return seen

    return call


def test_test_prompts_are_the_first_of_the_test_split(profile_with_base):
    tokenizer = models.load_tokenizer(profile_with_base)
    rows = evaluation.prompt_rows(profile_with_base, tokenizer, "test")
    expected = load_preferences(profile_with_base)["test"]
    assert list(rows["prompt"]) == list(expected["prompt"])[: profile_with_base.eval_prompts]
    more = dataclasses.replace(profile_with_base, eval_prompts=10**6)
    assert len(evaluation.prompt_rows(more, tokenizer, "test")) == len(expected)


def test_every_test_prompt_leaves_room_for_both_decodings(profile_with_base):
    tokenizer = models.load_tokenizer(profile_with_base)
    decoding = dataclasses.replace(profile_with_base.decoding, max_new_tokens=2, beam_new_tokens=3)
    profile = dataclasses.replace(profile_with_base, decoding=decoding)
    rows = evaluation.prompt_rows(profile, tokenizer, "test")
    model = models.load_base(profile)
    for name in evaluation.DECODINGS:
        replies = evaluation.decode(profile, model, tokenizer, list(rows["prompt"]), name)
        assert len(replies) == len(rows) and all(isinstance(reply, Answer) for reply in replies)


def test_beam_is_the_published_decoding(options_of, profile_with_base):
    options = options_of("beam")
    settings = profile_with_base.decoding
    assert (options["num_beams"], options["repetition_penalty"]) == (3, 1.2)
    assert options["max_new_tokens"] == settings.beam_new_tokens
    assert options.get("temperature", 0) == 0


def test_sample_is_what_ppo_trains_on(options_of, profile_with_base):
    options = options_of("sample")
    settings = profile_with_base.decoding
    assert (options["temperature"], options["max_new_tokens"]) == (settings.temperature, settings.max_new_tokens)
    assert options["seed"] == profile_with_base.seed
    assert options.get("num_beams", 1) == 1 and options.get("repetition_penalty", 1.0) == 1.0


def test_unknown_decoding_is_refused(profile_with_base):
    with pytest.raises(ValueError, match=r"'greedy'.*beam, sample"):
        evaluation.decode(profile_with_base, None, None, PROMPTS, "greedy")


def answers(*texts, ended=True):
    return [Answer(text, (5, 6), ended) for text in texts]


def write(profile, name="base"):
    replies = {
        "beam": [Answer("the cat sat on the mat", (5,), True), Answer("no", (5,), False)],
        "sample": answers("a b a b", "a c", ended=False),
    }
    references = ["the cat lay on the mat", "yes"]
    evaluation.evaluate_answers(profile, name, PROMPTS, references, replies)
    return outputs.read_csv(profile, "rouge.csv"), outputs.read_csv(profile, "behaviour.csv")


def value(table, metric, model="base"):
    (mean,) = table.query("model == @model and metric == @metric")["mean"]
    return mean


def test_rouge_of_both_decodings_is_written_as_counted_by_hand(profile):
    rouge, _ = write(profile)
    assert list(rouge.columns) == ["model", "metric", "mean", "ci_low", "ci_high", "n"]
    assert value(rouge, "rouge1") == pytest.approx((5 / 6 + 0) / 2, abs=1e-6)
    assert value(rouge, "rouge2") == pytest.approx(0.3)
    assert value(rouge, "rouge1_sample") == 0
    assert set(rouge.n) == {2}


def test_stopping_length_and_diversity_are_written_as_counted_by_hand(profile):
    _, behaviour = write(profile)
    assert (value(behaviour, "stop_rate"), value(behaviour, "stop_rate_sample")) == (0.5, 0)
    assert (value(behaviour, "words"), value(behaviour, "words_sample")) == (3.5, 3)
    assert value(behaviour, "distinct_1_sample") == pytest.approx(3 / 6)
    assert value(behaviour, "distinct_2_sample") == pytest.approx(3 / 4)  # ab, ba, ac; "ab" stands twice
    assert behaviour.query("metric == 'distinct_1_sample'").ci_low.isna().all()


def test_foreign_pairs_of_sampled_answers_are_written_for_the_lab_alone(profile):
    _, behaviour = write(profile)
    assert value(behaviour, "foreign_pairs_sample") == 1  # "a b a b" and "a c" are no English of the lab
    _, behaviour = write(dataclasses.replace(profile, lab=None), "ppo")
    assert behaviour.query("model == 'ppo' and metric == 'foreign_pairs_sample'").empty


def test_predictions_are_those_of_the_published_decoding(profile):
    write(profile)
    assert outputs.read_json(profile, "predictions_base.json") == [
        {"prompt": "Why?", "reference": "the cat lay on the mat", "prediction": "the cat sat on the mat"},
        {"prompt": "How do I grill?", "reference": "yes", "prediction": "no"},
    ]


def test_rows_of_a_model_replace_its_old_ones_and_keep_those_of_others(profile):
    first, _ = write(profile, "base")
    write(profile, "ppo")
    rouge, behaviour = write(profile, "base")
    assert len(rouge) == 2 * len(first) and not rouge.duplicated(["model", "metric"]).any()
    assert set(rouge.model) == set(behaviour.model) == {"base", "ppo"}


def test_draws_are_rounds_over_the_prompts_of_which_the_first_is_the_plain_answer(profile_with_base):
    tokenizer, model = models.load_tokenizer(profile_with_base), models.load_base(profile_with_base)
    drawn = evaluation.draw(profile_with_base, model, tokenizer, PROMPTS)
    assert len(drawn) == evaluation.DRAWS * len(PROMPTS)
    assert drawn[: len(PROMPTS)] == evaluation.decode(profile_with_base, model, tokenizer, PROMPTS, "sample")
    assert drawn[: len(PROMPTS)] != drawn[len(PROMPTS) : 2 * len(PROMPTS)]


def test_value_of_a_prompt_is_the_mean_over_its_draws(monkeypatch):
    monkeypatch.setattr(evaluation, "DRAWS", 3)
    assert evaluation.per_prompt([1.0, 10.0, 2.0, 20.0, 6.0, 30.0]).tolist() == [3.0, 20.0]
    assert len(evaluation.per_prompt([])) == 0


def test_models_with_rows_of_rouge_were_evaluated_before(profile):
    assert evaluation.evaluated_before(profile) == set()
    write(profile, "base")
    write(profile, "ppo")
    assert evaluation.evaluated_before(profile) == {"base", "ppo"}


def test_share_of_longer_answers_as_counted_by_hand(profile):
    sample = {"sft": ["a b", "a", "a b", "a b c"], "ppo": ["a b c", "a", "a b c", "a b c d"]}  # two rounds, two prompts
    beam = {"sft": ["a", "a b c"], "ppo": ["a b", "a b"]}
    real = dataclasses.replace(profile, lab=None)
    table = evaluation.length_rows(real, PROMPTS, {"sample": sample, "beam": beam}, against="sft").set_index("decoding")
    assert table.longer.to_dict() == {"sample": 0.75, "beam": 0.5}  # an answer of equal length is not longer
    assert table.words.to_dict() == {"sample": 2.75, "beam": 2} and table.words_against.tolist() == [2, 2]
    assert set(table.model) == {"ppo"} and set(table.n) == {2}
    assert table.ci_low["sample"] == 0.5 and table.ci_high["sample"] == 1  # prompt by prompt: 1 and a half
    assert table.wins_by_gold.isna().all()


def test_win_rate_by_gold_stands_beside_the_share_of_longer_answers(profile):
    rows = load_preferences(profile)["test"]
    asked, good = list(rows["prompt"])[:4], list(rows["chosen"])[:4]
    garbled = [f"{answer} I like trains." for answer in good[:2]] + good[2:]
    table = evaluation.length_rows(profile, asked, {"beam": {"sft": good, "ppo": garbled}}, against="sft")
    assert (table.longer[0], table.wins_by_gold[0]) == (0.5, 0.25)  # two losses and two ties
