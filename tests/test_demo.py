"""The demo page: it shows what the models answer, in a real browser, to several visitors, and never as HTML."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from rlhf import chat, demo, generation, models, outputs
from rlhf.hub.publish import assemble
from rlhf.profiles import load_profile
from rlhf.reward.scoring import score

import psutil
import pytest
import torch
from conftest import run_python
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import expect
from tiny_run import make_run

screenshot = runpy.run_path(str(outputs.ROOT / "scripts" / "screenshot.py"))
QUESTION = "How do I clean a copper pan?"
EVIL = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"


@pytest.fixture
def answerer(profile_with_sft, monkeypatch, request):
    """Different policies, and a reward model whose head is not trained; `request.param` adds checkpoints."""
    base = outputs.checkpoint_path(profile_with_sft, "base")
    for name in ("ppo_aligned_final", *getattr(request, "param", ())):
        shutil.copytree(base, outputs.checkpoint_path(profile_with_sft, name))
    monkeypatch.setattr(models, "load_reward_model", lambda profile: models.new_reward_model(profile, seed=0).eval())
    answerer = demo.Answerer(profile_with_sft)
    torch.manual_seed(0)
    with torch.no_grad():
        for policy in list(answerer.policies.values())[1:]:
            policy.transformer.ln_f.weight += torch.randn_like(policy.transformer.ln_f.weight)
    return answerer


def shown_for(answerer, prompt: str, length: int = 12, aligned: str = "ppo") -> list[str]:
    """What the page must show of greedy answers, by way of the evaluation's code: answer and reward of each policy."""
    shown = []
    for policy in (answerer.policies[name] for name in ("base", "sft", aligned)):
        options = {"max_new_tokens": length, "batch_size": 1}
        answer = generation.generate_answers(policy, answerer.tokenizer, [prompt], **options)[0]
        reward = score(answerer.reward_model, answerer.tokenizer, [prompt], [answer.text], [answer.ended]).item()
        shown += [answer.text, f"{reward:+.2f}" + ("" if answer.ended else "  (cut off)")]
    return shown


def slowly(seconds: float):
    """chat.stream, with a pause after each piece."""

    def stream(*arguments, **options):
        pieces = chat_stream(*arguments, **options)
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                return end.value
            yield piece
            time.sleep(seconds)

    return stream


chat_stream = chat.stream


def test_answers_and_rewards_are_those_of_the_evaluation_and_grow_piece_by_piece(answerer):
    steps = list(answerer.stream(QUESTION, 0.0, 12))
    assert steps[-1] == shown_for(answerer, QUESTION) and len(set(steps[-1][::2])) == 3
    for earlier, later in pairwise(steps):
        assert all(b.startswith(a) for a, b in zip(earlier[::2], later[::2], strict=True))
    assert len(steps) > 4 and steps[0][1::2] == ["", "", ""]


@pytest.mark.parametrize("answerer", [["dpo_final"]], indirect=True)
def test_policy_that_a_command_has_made_can_be_chosen_and_no_other(answerer):
    *_, last = answerer.stream(QUESTION, 0.0, 12, "dpo")
    assert last == shown_for(answerer, QUESTION, aligned="dpo") != shown_for(answerer, QUESTION)
    with pytest.raises(ValueError, match=r"no model 'ipo'; choose one of ppo, dpo"):
        next(answerer.stream(QUESTION, 0.0, 12, "ipo"))


def test_visitor_who_leaves_stops_the_models(answerer, monkeypatch):
    before = set(threading.enumerate())
    answers = answerer.stream(QUESTION, 0.0, 16)
    next(answers)
    assert set(threading.enumerate()) - before
    answers.close()
    assert set(threading.enumerate()) <= before


def test_examples_are_the_prompts_of_the_evaluation_or_those_that_were_published(profile):
    outputs.update_run(profile, examples=["Why?"])
    assert demo.examples(profile) == ["Why?"]
    outputs.write_json(profile, "qualitative.json", [{"prompt": "How?"}, {"prompt": "When?"}])
    assert demo.examples(profile) == ["How?", "When?"]


def test_without_checkpoints_it_says_what_to_run(profile, monkeypatch, capsys):
    monkeypatch.setenv("RLHF_PROFILE", "smoke")
    assert demo.main() == 2
    assert "is missing; run 01_supervised_finetuning" in capsys.readouterr().err


def test_folder_that_was_not_published_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLHF_REPO", str(tmp_path))
    assert demo.main() == 2
    assert "has no rlhf.json; give a repository that `make publish` made" in capsys.readouterr().err


def test_published_checkpoints_answer_as_those_of_the_run(base_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_OUTPUTS", str(make_run(tmp_path / "outputs", base_checkpoint)))
    monkeypatch.setenv("RLHF_PROFILE", "smoke")
    here, prompts = demo.load()
    (tmp_path / "repository").mkdir()
    assemble(load_profile("smoke"), "user/rlhf-gpt2", tmp_path / "repository")
    monkeypatch.setenv("RLHF_PROFILE", "gpt2")  # a repository brings its own profile
    there, published_prompts = demo.load(str(tmp_path / "repository"))
    assert published_prompts == prompts and prompts and there.profile == here.profile
    for prompt in prompts[:2]:
        assert list(there.stream(prompt, 0.0, 12))[-1] == list(here.stream(prompt, 0.0, 12))[-1]


def test_page_needs_nothing_beyond_its_own_requirements():
    code = "import sys\nfrom rlhf import demo\nprint(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(run_python(code).split())
    assert {"gradio", "transformers", "peft"} <= loaded
    assert loaded & {"trl", "evaluate", "rouge_score", "matplotlib", "tensorboard", "nbformat", "nbclient"} == set()


def test_entry_file_of_a_space_serves_the_page_and_says_what_is_missing(tmp_path):
    done = subprocess.run(
        [sys.executable, outputs.ROOT / "demo" / "app.py"],
        env={**os.environ, "RLHF_REPO": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "has no rlhf.json" in done.stderr


# A server and its visitors


@pytest.fixture
def serve(answerer):
    """Starts the page on a free port; returns its address. Further calls start further pages."""
    pages = []

    def start(prompts=(QUESTION, "Why?", EVIL)) -> str:
        pages.append(demo.page(answerer, list(prompts)))
        _, url, _ = pages[-1].launch(prevent_thread_lock=True, quiet=True, **demo.SERVER)
        return url

    yield start
    for page in pages:
        page.close()


def test_page_listens_on_this_machine_alone(serve):
    port = int(serve().rstrip("/").split(":")[-1])
    listening = [it.laddr for it in psutil.Process().net_connections("tcp") if it.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]


def test_fifty_prompts_at_once_are_all_answered_and_few_at_the_same_time(answerer, serve, monkeypatch):
    running, most, stream = [], [], answerer.stream

    def counted(*arguments):
        running.append(1)
        most.append(len(running))
        try:
            yield from stream(*arguments)
        finally:
            running.pop()

    monkeypatch.setattr(answerer, "stream", counted)
    monkeypatch.setattr(chat, "stream", slowly(0.005))
    client = Client(serve(), verbose=False, max_workers=50, httpx_kwargs={"timeout": 60})
    prompts = [f"How do I clean {count} pans?" for count in range(5)] * 10
    jobs = [client.submit(prompt, 0.0, 8, api_name="/answer") for prompt in prompts]
    shown = {prompt: shown_for(answerer, prompt, 8) for prompt in prompts[:5]}
    assert [list(job.result(timeout=120)) for job in jobs] == [shown[prompt] for prompt in prompts]
    assert max(most) == demo.AT_ONCE and not running


def test_prompt_that_is_cancelled_makes_room_for_the_next(answerer, serve, monkeypatch):
    running, stream = [], answerer.stream

    def endless(prompt, *arguments):
        if prompt != "endless":
            yield from stream(prompt, *arguments)
            return
        running.append(1)
        try:
            while True:
                time.sleep(0.05)
                yield [""] * 6
        finally:
            running.pop()

    monkeypatch.setattr(answerer, "stream", endless)
    client = Client(serve(), verbose=False)
    jobs = [client.submit("endless", 0.0, 12, api_name="/answer") for _ in range(demo.AT_ONCE)]
    while len(running) < demo.AT_ONCE:  # no place is left
        time.sleep(0.05)
    for job in jobs:
        job.cancel()
    answer = client.submit(QUESTION, 0.0, 12, api_name="/answer").result(timeout=60)
    assert list(answer) == shown_for(answerer, QUESTION) and not running


def test_visitor_who_asks_too_often_is_asked_to_wait_and_others_are_not(serve, monkeypatch):
    monkeypatch.setattr(demo, "A_MINUTE", 2)
    url = serve()
    often, other = (Client(url, verbose=False, headers={"X-Forwarded-For": f"192.0.2.{i}"}) for i in (1, 2))
    for _ in range(2):
        often.predict(QUESTION, 0.0, 12, api_name="/answer")
    with pytest.raises(AppError, match="more than 2 prompts came from your address within a minute; wait a little"):
        often.predict(QUESTION, 0.0, 12, api_name="/answer")
    assert all(other.predict(QUESTION, 0.0, 12, api_name="/answer")[1::2])


def test_more_prompts_than_can_wait_are_turned_away(serve, monkeypatch):
    monkeypatch.setattr(chat, "stream", slowly(0.05))
    monkeypatch.setattr(demo, "WAITING", 1)
    client = Client(serve(), verbose=False)

    def ask(count):
        try:
            return client.predict(f"How do I clean {count} pans?", 0.0, 12, api_name="/answer")
        except Exception as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(ask, range(8)))
    assert any("full" in result for result in results if isinstance(result, str))
    assert sum(not isinstance(result, str) for result in results) >= demo.AT_ONCE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("  ", 0.0, 12), "is empty"),
        (("word " * 2000, 0.0, 12), "at most 8,000"),
        (("word " * 300, 0.0, 12), "shorten it"),
        ((QUESTION, 0.0, 10_000), "maximum value"),
        ((QUESTION, 9.0, 12), "maximum value"),
    ],
)
def test_what_can_not_be_answered_is_an_error_that_says_so(serve, arguments, message):
    with pytest.raises(AppError, match=message):
        Client(serve(), verbose=False).predict(*arguments, api_name="/answer")


def test_failure_of_a_model_is_a_message_and_not_a_trace(answerer, serve, monkeypatch, caplog):
    def generate(**_):
        raise RuntimeError("secret of the machine")

    monkeypatch.setattr(answerer.policies["ppo"], "generate", generate)
    with pytest.raises(AppError, match=r"^The models failed \(RuntimeError\); try a shorter prompt\.$"):
        Client(serve(), verbose=False).predict(QUESTION, 0.0, 12, api_name="/answer")
    assert "secret of the machine" in caplog.text


# In a browser


@pytest.fixture
def visit(chromium, serve):
    """Opens the page, each call as another visitor; anything that the page asks of another host fails the test."""
    contexts, foreign, urls = [], [], []

    def start():
        urls.append(urls[0] if urls else serve())
        contexts.append(chromium.new_context(viewport={"width": 1200, "height": 900}))
        page = contexts[-1].new_page()
        page.on("request", lambda request: foreign.append(request.url) if "//127.0.0.1" not in request.url else None)
        page.goto(urls[0])
        screenshot["set_temperature"](page, "0")
        return page

    yield start
    for context in contexts:
        context.close()
    assert [url for url in foreign if not url.startswith(("data:", "blob:"))] == []


def ask(page, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Answer", exact=True).click()


def box(page, name: str):
    return page.locator(f"#{name} textarea, #{name} input")


def expect_shown(page, expected: list[str]) -> None:
    for i, name in enumerate(demo.NAMES):
        expect(box(page, f"reward-{name}")).to_have_value(expected[2 * i + 1], timeout=20_000)
        assert box(page, f"answer-{name}").input_value() == expected[2 * i]


def test_page_shows_the_three_answers_with_their_rewards(answerer, visit):
    page = visit()
    assert page.title() == demo.TITLE
    ask(page, QUESTION)
    expect_shown(page, shown_for(answerer, QUESTION, answerer.profile.decoding.max_new_tokens))
    page.get_by_text("Why?", exact=True).click()  # an example fills in the prompt
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("Why?")


@pytest.mark.parametrize("answerer", [["dpo_final"]], indirect=True)
def test_visitor_chooses_who_answers_beside_sft(answerer, visit):
    page = visit()
    page.get_by_label("Aligned by").click()
    page.get_by_role("option", name="DPO", exact=True).click()
    expect(page.get_by_label("Reward of DPO")).to_be_visible(timeout=20_000)
    ask(page, QUESTION)
    expect_shown(page, shown_for(answerer, QUESTION, answerer.profile.decoding.max_new_tokens, "dpo"))


def test_second_visitor_is_answered_at_the_same_time(answerer, visit, monkeypatch):
    monkeypatch.setattr(chat, "stream", slowly(0.2))
    pages, prompts = [visit(), visit()], [QUESTION, "How do I grill?"]
    for page, prompt in zip(pages, prompts, strict=True):
        ask(page, prompt)
    for page in pages:  # both have begun, and neither is done
        expect(box(page, "answer-base")).not_to_have_value("", timeout=20_000)
        assert box(page, "reward-ppo").input_value() == ""
    for page, prompt in zip(pages, prompts, strict=True):
        expect_shown(page, shown_for(answerer, prompt, answerer.profile.decoding.max_new_tokens))


def test_stop_ends_the_answers(answerer, visit, monkeypatch):
    monkeypatch.setattr(chat, "stream", slowly(0.3))
    whole = shown_for(answerer, QUESTION, answerer.profile.decoding.max_new_tokens)
    page = visit()
    ask(page, QUESTION)
    expect(box(page, "answer-sft")).not_to_have_value("", timeout=20_000)
    page.get_by_role("button", name="Stop").click()
    time.sleep(0.5)
    stopped = box(page, "answer-sft").input_value()
    time.sleep(1)
    assert box(page, "answer-sft").input_value() == stopped and len(stopped) < len(whole[2])
    assert box(page, "reward-sft").input_value() == ""


@pytest.mark.parametrize("prompt", ["word " * 2000, "word " * 300])
def test_prompt_that_is_too_long_is_a_message(visit, prompt):
    page = visit()
    ask(page, prompt)
    expect(page.get_by_test_id("toast-body")).to_contain_text(re.compile("at most 8,000|shorten it"), timeout=20_000)
    assert box(page, "answer-base").input_value() == ""


def test_html_in_prompt_and_answer_is_shown_as_text(answerer, visit, monkeypatch):
    def stream(*arguments, **options):
        yield EVIL
        return True

    monkeypatch.setattr(chat, "stream", stream)
    page = visit()
    expect(page.get_by_text(EVIL[:40])).to_be_visible()  # an example, which a repository may bring
    ask(page, EVIL)
    expect(box(page, "answer-ppo")).to_have_value(EVIL, timeout=20_000)
    expect(box(page, "reward-ppo")).not_to_have_value("", timeout=20_000)
    assert page.evaluate("window.hit") is None


def test_html_in_an_error_is_shown_as_text(answerer, visit, monkeypatch):
    def stream(prompt, *_):
        raise ValueError(f"the response to {prompt!r} is too long")
        yield

    monkeypatch.setattr(answerer, "stream", stream)
    page = visit()
    ask(page, EVIL)
    expect(page.get_by_test_id("toast-body")).to_contain_text("<script>window.hit = 1</script>", timeout=20_000)
    assert page.evaluate("window.hit") is None
