"""A web page: the answers of the base model, of SFT and of PPO to one prompt side by side, each with its reward.

`make demo` serves it by demo/app.py, and so does a Space.
"""

import dataclasses
import html
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from rlhf import chat, models, outputs, registry
from rlhf.download import fetch
from rlhf.hub.limits import limits
from rlhf.hub.pull import pull, read_manifest
from rlhf.profiles import Profile, load_profile, set_up
from rlhf.reward.scoring import score

import gradio as gr

TITLE = "GPT-2 before and after RLHF"
NAMES = {"base": "Base model", "sft": "SFT", "ppo": "PPO"}
LONGEST_PROMPT = 8_000  # characters; the context of the models usually allows less, and is checked too
AT_ONCE, WAITING = 2, 50  # prompts that are answered at the same time, and that wait for their turn
A_MINUTE = 60  # prompts of one visitor
INTRODUCTION = """One prompt, three models. The **base model** continues text. **SFT** was fine-tuned on good answers.
**PPO** went on from SFT and was rewarded by the reward model, whose score stands below each answer."""
REWARD = """The reward is a number without unit: higher is better in the eyes of the reward model, and 1 is about the
spread of SFT's answers. It is an approximation, and PPO was trained to please it: a higher reward under PPO's answer is
no proof of a better one. An answer that is cut off has not ended within the length that you chose."""
SERVER = {
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # not from another site
    "footer_links": [],
    "ssr_mode": False,
    "max_file_size": "1kb",  # the page takes no files
}


class Answerer:
    """The three policies and the reward model of a profile, loaded once for all visitors."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self.tokenizer = models.load_tokenizer(profile)
        self.aligned = ("ppo", *outputs.made_by_command(profile))  # of which a visitor chooses one
        self.policies = {name: chat.load_policy(profile, name) for name in ("base", "sft", *self.aligned)}
        self.reward_model = models.load_reward_model(profile)

    def stream(self, prompt: str, temperature: float, max_new_tokens: int, aligned: str = "ppo") -> Iterator[list[str]]:
        """The answers and rewards as they are written: [text, reward] of base, SFT and one of `aligned`.

        Raises ValueError for another model or a prompt that can't be answered. Closing the iterator stops the models.
        """
        if aligned not in self.aligned:
            raise ValueError(f"no model {aligned!r}; choose one of {', '.join(self.aligned)}.")
        if len(prompt) > LONGEST_PROMPT:
            raise ValueError(f"the prompt has {len(prompt):,} characters; at most {LONGEST_PROMPT:,} are answered.")
        options = {"temperature": temperature, "max_new_tokens": int(max_new_tokens)}
        with ExitStack() as stack:
            streams = {
                name: stack.enter_context(closing(chat.stream(self.policies[name], self.tokenizer, prompt, **options)))
                for name in ("base", "sft", aligned)
            }
            texts, scores = dict.fromkeys(streams, ""), dict.fromkeys(streams, "")
            while streams:
                for name in list(streams):
                    try:
                        texts[name] += next(streams[name])
                    except StopIteration as end:
                        del streams[name]
                        scores[name] = self._reward(prompt, texts[name], end.value)
                yield [shown for name in texts for shown in (texts[name].strip(), scores[name])]

    def _reward(self, prompt: str, text: str, ended: bool) -> str:
        reward = score(self.reward_model, self.tokenizer, [prompt], [text.strip()], [ended]).item()
        return f"{reward:+.2f}" + ("" if ended else "  (cut off)")


def load(repository: str = "") -> tuple[Answerer, list[str]]:
    """The models, and prompts to try. `repository` is on the Hub or a local folder; without it, this machine's run.

    Raises FileNotFoundError for a stage that has not run, and what `pull` raises for a repository.
    """
    if not repository:
        profile = load_profile()
        set_up(profile)
        return Answerer(profile), examples(profile)
    source = fetch(repository)
    manifest = read_manifest(repository, source)
    profile = dataclasses.replace(load_profile(manifest["profile"]), seed=manifest["seed"])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLHF_OUTPUTS"] = folder
        set_up(profile)
        pull(profile, str(source))
        return Answerer(profile), examples(profile)


def examples(profile: Profile) -> list[str]:
    """The prompts that the evaluation shows, those of a pulled run as they were published."""
    try:
        return [example["prompt"] for example in outputs.read_json(profile, "qualitative.json")]
    except FileNotFoundError:
        return outputs.read_json(profile, "run.json").get("examples", [])


def page(answerer: Answerer, prompts: list[str]) -> gr.Blocks:
    """The page. Whatever a visitor or a model wrote is shown in text boxes, which show text and never HTML."""
    decoding, asked_of_late = answerer.profile.decoding, []  # the latter: when, and from which address

    def show(
        prompt: str, temperature: float, max_new_tokens: float, aligned: str, request: gr.Request
    ) -> Iterator[list[str]]:
        try:
            now, visitor = time.monotonic(), request.client.host
            asked_of_late[:] = [(then, who) for then, who in asked_of_late if then > now - 60]
            if [who for _, who in asked_of_late].count(visitor) >= A_MINUTE:
                raise ValueError(f"more than {A_MINUTE} prompts came from your address within a minute; wait a little.")
            asked_of_late.append((now, visitor))
            yield from answerer.stream(prompt, temperature, max_new_tokens, aligned)
        except ValueError as error:  # a message may quote the prompt, and Gradio takes it for HTML
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        except Exception as error:
            logging.exception("an answer failed")
            message = f"The models failed ({type(error).__name__}); try a shorter prompt."
            raise gr.Error(message, print_exception=False) from error

    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {TITLE}\n\n{INTRODUCTION}")
        prompt = gr.Textbox(label="Prompt", lines=2, max_lines=8, placeholder="How do I …?", autofocus=True)
        with gr.Row():
            ask, stop = gr.Button("Answer", variant="primary"), gr.Button("Stop")
        with gr.Accordion("Decoding", open=False):
            label = "Temperature (0: the likeliest token)"
            temperature = gr.Slider(0, 1.5, decoding.temperature, step=0.05, label=label)
            longest = decoding.max_new_tokens
            length = gr.Slider(8, longest, longest, step=1, label="Longest answer in tokens")
            names = {key: NAMES.get(key, registry.MODELS[key].label) for key in answerer.aligned}
            choices, label = [(name, key) for key, name in names.items()], "Aligned by"
            aligned = gr.Dropdown(choices, value="ppo", label=label, visible=len(choices) > 1, elem_id="aligned")
        shown = []
        with gr.Row(equal_height=True):
            for name, label in NAMES.items():
                with gr.Column(min_width=240):
                    texts = {"label": label, "lines": 12, "max_lines": 16, "buttons": ["copy"]}
                    shown.append(gr.Textbox(elem_id=f"answer-{name}", **texts))
                    shown.append(gr.Textbox(label=f"Reward of {label}", elem_id=f"reward-{name}"))
        if prompts:
            note = "Prompts of the evaluation, none of them in any training"
            gr.Examples([[text] for text in prompts], prompt, label=note)
        what_not = limits(bool(answerer.profile.lab))
        gr.Markdown(f"### How to read it\n\n{REWARD}\n\n### What such a model can't do\n\n{what_not}")
        aligned.change(
            lambda key: (gr.update(label=names[key]), gr.update(label=f"Reward of {names[key]}")),
            aligned,
            shown[-2:],
            api_visibility="private",
        )
        inputs = [prompt, temperature, length, aligned]
        asked = gr.on([ask.click, prompt.submit], show, inputs, shown, api_name="answer", show_progress="minimal")
        stop.click(None, cancels=asked)
    return blocks.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)


def main() -> int:
    """Serve the page until it is interrupted; exit status 2 where it can't start."""
    repository = os.environ.get("RLHF_REPO", "").strip()
    try:
        answerer, prompts = load(repository)
    except (ValueError, OSError) as error:
        print(f"error: {f'RLHF_REPO={repository!r}: ' * bool(repository)}{error}", file=sys.stderr)
        return 2
    page(answerer, prompts).launch(**SERVER)
    return 0
