"""The chat: what is streamed is what the model answers, every command does what /help says, Ctrl-C ends an answer."""

import dataclasses
import os
import shutil
import threading
import time
from itertools import pairwise

from rlhf import chat, generation, models, outputs
from rlhf.reward import encoder
from rlhf.reward.scoring import score

import pytest

QUESTION = "How do I clean a pan?"
GREEDY = {"max_new_tokens": 12, "temperature": 0.0}


@pytest.fixture
def session(profile_with_sft, monkeypatch):
    """A chat whose policies are the base in every place, and what it has written."""
    base = outputs.checkpoint_path(profile_with_sft, "base")
    shutil.copytree(base, outputs.checkpoint_path(profile_with_sft, "ppo_aligned_final"))
    written: list[str] = []
    session = chat.Chat(profile_with_sft, "ppo", written.append)
    monkeypatch.setattr(session, "reward_model", lambda: models.new_reward_model(profile_with_sft, seed=0).eval())
    return session, written


def test_streamed_pieces_are_the_answer_that_the_evaluation_gives(policy, tokenizer):
    pieces = list(chat.stream(policy, tokenizer, QUESTION, **GREEDY))
    assert len([piece for piece in pieces if piece]) > 1
    expected = generation.generate_texts(policy, tokenizer, [QUESTION], max_new_tokens=12, batch_size=1)
    assert "".join(pieces).strip() == expected[0]


def test_answer_that_is_no_longer_read_stops_the_model(policy, tokenizer, monkeypatch):
    steps, before = [], set(threading.enumerate())
    monkeypatch.setattr(policy, "prepare_inputs_for_generation", counted(policy.prepare_inputs_for_generation, steps))
    pieces = chat.stream(policy, tokenizer, QUESTION, max_new_tokens=60, temperature=0.0)
    next(pieces)
    pieces.close()
    assert set(threading.enumerate()) <= before and len(steps) < 60


def counted(function, calls: list):
    """The function, slowed down so that it can be stopped on its way, and its calls noted."""

    def run(*arguments, **options):
        calls.append(1)
        time.sleep(0.01)
        return function(*arguments, **options)

    return run


@pytest.mark.parametrize(("question", "message"), [("  ", "is empty"), ("word " * 300, "leave room .*shorten it")])
def test_question_that_can_not_be_answered_is_an_error_that_says_so(policy, tokenizer, question, message):
    with pytest.raises(ValueError, match=message):
        list(chat.stream(policy, tokenizer, question, **GREEDY))


def test_error_of_the_model_reaches_the_reader(policy, tokenizer, monkeypatch):
    def generate(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(policy, "generate", generate)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(chat.stream(policy, tokenizer, QUESTION, **GREEDY))


def test_switching_changes_who_answers(session, monkeypatch):
    session, written = session
    asked = []
    monkeypatch.setattr(session, "ask", lambda question, model=None: asked.append(model or session.model))
    for line in (QUESTION, "/base", QUESTION, "/sft", QUESTION, "/ppo", QUESTION):
        assert session.command(line)
    assert asked == ["ppo", "base", "sft", "ppo"]
    assert [text for text in written if "answers now" in text] == [
        f"{m} answers now.\n" for m in ("base", "sft", "ppo")
    ]


def test_texts_stand_beside_each_other_wrapped_to_their_share():
    shown = chat.in_columns({"base": "one two three four", "ppo": "five six"}, width=22)
    assert shown.split("\n") == ["base        ppo", "----        ---", "one two     five six", "three four"]


@pytest.mark.parametrize(("width", "headings"), [(120, ["base sft ppo"]), (40, ["base", "sft", "ppo"])])
def test_compare_shows_the_answers_of_all_three_to_the_last_question(session, monkeypatch, width, headings):
    session, written = session
    session.command("/compare")
    assert written == ["Ask something first.\n"]
    session.command(QUESTION)
    last = session.last
    monkeypatch.setattr(chat.shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((width, 24)))
    monkeypatch.setattr(session, "policy", lambda name: name)
    monkeypatch.setattr(chat, "stream", lambda policy, _, prompt, **__: iter([f"{policy} on ", prompt]))
    written.clear()
    session.command("/compare")
    lines = [" ".join(line.split()) for line in "".join(written).split("\r")[-1].split("\n")]
    assert [above for above, line in pairwise(lines) if set(line) <= set("- ") and line] == headings
    shown = " ".join(lines)
    assert all(f"{model} on How do" in shown for model in chat.POLICIES)
    assert (session.question, session.last) == (QUESTION, last)


def test_reward_is_that_of_the_last_answer(session):
    session, written = session
    session.command(QUESTION)
    session.command("/reward")
    model, tokenizer = session.reward_model(), session.tokenizer
    expected = score(model, tokenizer, [QUESTION], [session.last], [session.ended]).item()
    assert written[-1] == f"reward {expected:+.2f} (logits)\n"


def test_stream_says_whether_the_model_ended_the_answer(policy, tokenizer):
    def ended(**options):
        result = []

        def read():
            result.append((yield from chat.stream(policy, tokenizer, QUESTION, **GREEDY | options)))

        list(read())
        return result[0]

    assert ended() is False
    whole = generation.generate_answers(policy, tokenizer, [QUESTION], max_new_tokens=12, batch_size=1)[0]
    third = whole.token_ids[2]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(third)
    assert ended() is True


def test_interrupt_ends_the_answer_and_the_chat_goes_on(session):
    session, written = session

    def write(text):
        written.append(text)
        if len(written) == 2:
            raise KeyboardInterrupt

    session.write = write
    session.command(QUESTION)
    assert written[-2:] == [" [stopped]", "\n"] and session.question == QUESTION
    assert session.command("/help") and written[-1] == chat.HELP + "\n"


def test_policy_that_a_command_has_made_can_be_asked(session):
    session, written = session
    with pytest.raises(FileNotFoundError, match=r"dpo_final is missing; run `make beyond` first"):
        session.command("/dpo")
    assert session.model == "ppo"
    made = outputs.checkpoint_path(session.profile, "dpo_final")
    shutil.copytree(outputs.checkpoint_path(session.profile, "base"), made)
    assert session.command("/dpo") and written[-1] == "dpo answers now.\n"
    session.command(QUESTION)
    assert session.last and "/dpo" in chat.HELP


def test_quit_ends_and_an_empty_line_does_nothing(session):
    session, written = session
    assert session.command("") and not written
    assert not session.command("/quit")


def test_once_prints_one_answer(session, capsys, monkeypatch):
    session, _ = session
    monkeypatch.setattr(chat, "load_profile", lambda: session.profile)
    assert chat.main(["--once", QUESTION]) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_missing_checkpoint_says_what_to_run(profile_with_base, capsys, monkeypatch):
    monkeypatch.setattr(chat, "load_profile", lambda: profile_with_base)
    assert chat.main(["--once", QUESTION]) == 2
    assert "ppo_aligned_final is missing; run 03_ppo_alignment" in capsys.readouterr().err


def test_session_in_a_terminal_goes_on_after_a_bad_question(session, capsys, monkeypatch):
    session, _ = session
    monkeypatch.setattr(chat, "load_profile", lambda: session.profile)
    lines = iter(["word " * 300, "/help", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert chat.main([]) == 0
    printed = capsys.readouterr().out
    assert "shorten it" in printed and printed.endswith(chat.HELP + "\n")


def test_reward_of_an_encoder_is_that_of_the_texts(profile_with_sft):
    profile = dataclasses.replace(profile_with_sft, encoder="own")
    model, tokenizer = encoder.new(profile)
    outputs.save_checkpoint(profile, "reward_model_final", model, tokenizer)
    session = chat.Chat(profile, "sft", lambda text: None)
    session.question, session.last = QUESTION, "With warm water."
    expected = encoder.score(model, tokenizer, [QUESTION], ["With warm water."]).item()
    assert session.reward() == pytest.approx(expected, abs=1e-5)
