"""A terminal chat with the policies of a run.

python -m rlhf.chat                       # talk to the aligned policy; /help lists the commands
python -m rlhf.chat --model sft
python -m rlhf.chat --once "Why?"         # one answer on standard output, for scripts
"""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import zip_longest
from threading import Event

from rlhf import models, registry
from rlhf.generation import context_of, encode_prompts
from rlhf.profiles import Profile, load_profile, set_up
from rlhf.reward import encoder
from rlhf.reward.scoring import score

import torch
from transformers import PreTrainedModel, StoppingCriteriaList, TextIteratorStreamer

POLICIES = ("base", "sft", "ppo")  # the commands that choose who answers
OTHERS = registry.BY_COMMAND  # further such commands, where `make beyond` has made the policy
HELP = f"""/base /sft /ppo   who answers from now on
/{" /".join(OTHERS)}
                  the same, once make beyond has trained it
/compare          the last question, answered by base, SFT and PPO side by side
/reward           the reward of the last answer
/help             this list
/quit             leave (or Ctrl-D)
Ctrl-C ends an answer, not the program."""


def stream(model, tokenizer, prompt: str, *, max_new_tokens: int, temperature: float) -> Generator[str, None, bool]:
    """The answer to a prompt (without template), piece by piece as it is written. Temperature 0 is greedy.

    It ends early when the caller no longer reads. The value of `yield from` is whether the model ended it by itself.
    Raises ValueError for an empty prompt or one that leaves no room in the context.
    """
    if not prompt.strip():
        raise ValueError("the question is empty; ask something.")
    ids = torch.tensor(encode_prompts(tokenizer, [prompt]), device=model.device)
    room = context_of(model) - max_new_tokens
    length = ids.shape[1]
    if length > room:
        raise ValueError(f"the question has {length} tokens, and at most {room} leave room for an answer; shorten it.")
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    streamer, stop = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True), Event()

    def write() -> int:
        """The last token."""
        try:
            return model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([lambda *_, **__: stop.is_set()]),
                **sampling,
            )[0, -1].item()
        finally:
            streamer.end()  # after an error too, or its reader would wait for ever

    with ThreadPoolExecutor(1) as pool:
        last_token = pool.submit(write)
        try:
            yield from streamer
        finally:
            stop.set()
    return last_token.result() == tokenizer.eos_token_id


def in_columns(texts: dict[str, str], width: int) -> str:
    """The texts beside each other, each below its name and wrapped to its share of the width."""
    each = (width - 2 * (len(texts) - 1)) // len(texts)
    columns = [[name, "-" * len(name), *textwrap.wrap(text, each)] for name, text in texts.items()]
    lines = zip_longest(*columns, fillvalue="")
    return "\n".join("  ".join(cell.ljust(each) for cell in line).rstrip() for line in lines)


def load_policy(profile: Profile, name: str) -> PreTrainedModel:
    """The model that one of POLICIES or OTHERS stands for."""
    keys = {"sft": models.start_key(profile), "ppo": "ppo_aligned"}
    return models.load_policy(profile, keys.get(name, name))


class Chat:
    """What a session knows: who answers, the last question and its answer. Models are loaded when first asked."""

    def __init__(self, profile: Profile, model: str, write: Callable[[str], None]):
        self.profile, self.model, self.write = profile, model, write
        self.tokenizer = models.load_tokenizer(profile)
        self.policy = cache(lambda name: load_policy(profile, name))
        self.reward_model = cache(lambda: (encoder.load if profile.encoder else models.load_reward_model)(profile))
        decoding = profile.decoding
        self.options = {"max_new_tokens": decoding.max_new_tokens, "temperature": decoding.temperature}
        self.question, self.last, self.ended = "", "", False

    def ask(self, question: str) -> None:
        """Write the answer as it comes; Ctrl-C ends it."""
        pieces, self.ended = [], False

        def read() -> Generator[str, None, None]:
            self.ended = yield from stream(self.policy(self.model), self.tokenizer, question, **self.options)

        try:
            for piece in read():
                pieces.append(piece)
                self.write(piece)
        except KeyboardInterrupt:
            self.write(" [stopped]")
        self.write("\n")
        self.question, self.last = question, "".join(pieces).strip()

    def compare(self) -> None:
        """The last question, answered by all in columns, one below the other where the terminal is narrow.

        What is asked and answered last stays the same. Ctrl-C gives up.
        """
        texts = {}
        try:
            for name in POLICIES:
                self.write(f"\r{name} answers ...")
                texts[name] = "".join(stream(self.policy(name), self.tokenizer, self.question, **self.options)).strip()
        except KeyboardInterrupt:
            self.write(" [stopped]\n")
            return
        width = shutil.get_terminal_size().columns
        rows = [texts] if width >= 80 else [{name: text} for name, text in texts.items()]
        self.write("\r" + " " * 20 + "\r" + "".join(in_columns(row, width) + "\n" for row in rows))

    def reward(self) -> float:
        """As the evaluation scores it: with EOS only where the model ended the answer; an encoder reads none."""
        if self.profile.encoder:
            return encoder.score(*self.reward_model(), [self.question], [self.last]).item()
        return score(self.reward_model(), self.tokenizer, [self.question], [self.last], [self.ended]).item()

    def command(self, line: str) -> bool:
        """Carry out a line; False ends the session."""
        line = line.strip()
        if line in ("/quit", "/exit"):
            return False
        if line.startswith("/") and line[1:] in (*POLICIES, *OTHERS):
            self.policy(line[1:])  # raises where it has not been trained: then the answers go on as before
            self.model = line[1:]
            self.write(f"{self.model} answers now.\n")
        elif line in ("/compare", "/reward") and not self.question:
            self.write("Ask something first.\n")
        elif line == "/compare":
            self.compare()
        elif line == "/reward":
            self.write(f"reward {self.reward():+.2f} (logits)\n")
        elif line.startswith("/"):
            self.write(HELP + "\n")
        elif line:
            self.ask(line)
        return True


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit status 2 where it can't start or answer."""
    description = "A terminal chat with the policies of a run."
    parser = argparse.ArgumentParser(prog="python -m rlhf.chat", description=description)
    parser.add_argument("--model", choices=(*POLICIES, *OTHERS), default="ppo", help="who answers first (default: ppo)")
    parser.add_argument("--once", metavar="PROMPT", help="answer this one prompt and leave")
    options = parser.parse_args(arguments)
    write = partial(print, end="", flush=True)
    try:
        profile = load_profile()
        set_up(profile)
        chat = Chat(profile, options.model, write)
        if options.once is not None:
            chat.ask(options.once)
            return 0
        chat.policy(options.model)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write(f"{options.model} of the {profile.name} profile answers. /help lists the commands.\n")
    while True:
        try:
            if not chat.command(input(f"{chat.model}> ")):
                return 0
        except (ValueError, OSError) as error:  # a question that is too long, a model that has not been trained
            write(f"{error}\n")
        except KeyboardInterrupt:
            write("\n(/quit leaves)\n")
        except EOFError:
            write("\n")
            return 0


if __name__ == "__main__":
    sys.exit(main())
