"""Solutions to the exercises of 01_supervised_finetuning: python exercises/stage_1.py, after a run of its notebooks."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache

from rlhf import metrics, models, outputs, sft
from rlhf.data import drop_too_long, load_preferences
from rlhf.evaluation.answers import decode, prompt_rows
from rlhf.profiles import load_profile, set_up
from rlhf.template import format_prompt
from rlhf.tokens import encode
from rlhf.training import lora_config

import numpy as np
import torch
from datasets import Dataset
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, DataCollatorForLanguageModeling


@cache
def examples(profile) -> Dataset:
    """The first 32 validation examples: prompt in the template, and completion."""
    rows, tokenizer = load_preferences(profile)["validation"], models.load_tokenizer(profile)
    rows = drop_too_long(rows, tokenizer, profile.sft.max_length, ("chosen",), "examples")
    rows = rows.select(range(min(32, len(rows))))
    return Dataset.from_dict({"prompt": [format_prompt(p) for p in rows["prompt"]], "completion": rows["chosen"]})


def labels_by_hand(profile):
    """Make the labels of sft.tokenize out of the whole text and the character offsets of its tokens alone.

    A token belongs to the answer if it begins where the prompt has ended. The labels are equal, because the template
    ends in a newline, which shares no token with the answer. EOS is added as a token, with its own label.
    """
    tokenizer, rows, mine = models.load_tokenizer(profile), examples(profile), []
    for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True):
        read = tokenizer(prompt + completion, return_offsets_mapping=True)
        tokens = zip(read["input_ids"], read["offset_mapping"], strict=True)
        mine.append([i if start >= len(prompt) else -100 for i, (start, _) in tokens] + [tokenizer.eos_token_id])
    theirs = list(sft.tokenize(rows, tokenizer)["labels"])
    print(f"equal to those of sft.tokenize in {sum(map(list.__eq__, mine, theirs))} of {len(rows)} examples")
    return mine, theirs


def space_in_the_template(profile):
    """End the template in a space. In how many examples do the prompt's tokens no longer begin those of the whole text?

    A byte-level tokenizer takes a space into the token of the word after it, where it has one. At the end of a prompt
    the space is a token of its own, and the policy would have to continue tokens that training never showed it.
    """
    tokenizer, changed = models.load_tokenizer(profile), {}
    for end in ("", " "):
        rows = [(row["prompt"] + end, row["completion"]) for row in examples(profile)]
        prompts, wholes = encode(tokenizer, [p for p, _ in rows]), encode(tokenizer, [p + c for p, c in rows])
        changed[end] = np.mean([whole[: len(ids)] != ids for ids, whole in zip(prompts, wholes, strict=True)])
        print(f"template + {end!r}: the tokens of the prompt change in {changed[end]:.2f} of the examples")
    return changed


@torch.no_grad()
def loss_by_hand(profile):
    """Compute the base model's loss on eight examples from its logits, and compare it with the loss that it returns.

    The logits at one token predict the next. The returned loss is the mean over the tokens of all answers, so a long
    answer has more weight than a short one; the mean over answers is another number.
    """
    tokenizer, model = models.load_tokenizer(profile), models.load_policy(profile, "base")
    mine, returned = [], []
    for row in sft.tokenize(examples(profile), tokenizer).take(8):
        ids, labels = (torch.tensor([row[name]], device=model.device) for name in ("input_ids", "labels"))
        output, learned = model(input_ids=ids, labels=labels), labels[0, 1:] != -100
        logprobs = output.logits[0, :-1].log_softmax(dim=-1)[learned]
        mine.append(-logprobs.gather(1, ids[0, 1:][learned, None]).squeeze(1))
        returned.append(output.loss)
    of_answers, theirs = torch.stack([losses.mean() for losses in mine]), torch.stack(returned)
    print(f"largest difference in an answer's loss: {(of_answers - theirs).abs().max():.1e} nats per token")
    print(f"mean over tokens {torch.cat(mine).mean():.4f}, mean over answers {of_answers.mean():.4f}")
    return of_answers, theirs


def adapter_weights(profile):
    """Predict the trained parameters of an adapter of the run's rank, and of twice that. Then count them with PEFT.

    A matrix of d x k weights gets r (d + k) new ones, so twice the rank is twice the parameters. No weights are needed
    to count: on the device "meta" tensors are shapes alone.
    """
    config, found = AutoConfig.from_pretrained(outputs.require_checkpoint(profile, "base")), {}
    for rank in (profile.sft.lora.r, 2 * profile.sft.lora.r):
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(config)
            model = get_peft_model(base, lora_config(replace(profile.sft.lora, r=rank), "CAUSAL_LM", base))
        shapes = [layer.get_base_layer().weight.shape for layer in model.modules() if isinstance(layer, LoraLayer)]
        found[rank] = sum(rank * (d + k) for d, k in shapes), models.trainable_parameters(model)
        print("rank {}: predicted {:,}, counted {:,}".format(rank, *found[rank]))
    return found


def rank_of_the_update(profile):
    """How much of the trained update B A, in squared norm, is in its first k singular values? Mean over the matrices.

    With the QR decompositions of B and of A transposed, they are those of an r x r matrix. Where few hold nearly all,
    a smaller rank could have stored this update; whether training would have found it, only training tells.
    """
    tensors = load_file(outputs.require_checkpoint(profile, "sft_qlora_final") / "adapter_model.safetensors")
    shares = []
    for name in (name for name in tensors if ".lora_A." in name):
        a, b = tensors[name].float(), tensors[name.replace(".lora_A.", ".lora_B.")].float()
        squares = torch.linalg.svdvals(torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T) ** 2
        shares.append((squares.cumsum(0) / squares.sum()).numpy())
    share = np.mean(shares, axis=0)
    print(", ".join(f"first {k}: {share[k - 1]:.2f}" for k in (1, 2, 4, 8, 16) if k <= len(share)))
    return share


def collator_that_masks_pad(profile):
    """Collate examples with DataCollatorForLanguageModeling of transformers. How many labels of EOS are left?

    It masks every pad token. With a pad token of its own each example keeps its EOS; with pad = EOS none does: the
    ending that the notebook calls pad_is_eos. The batches have the same shape, and nothing warns.
    """
    tokenizer, left = models.load_tokenizer(profile), []
    rows = [{"input_ids": ids} for ids in sft.tokenize(examples(profile), tokenizer)["input_ids"]]
    for pad in (tokenizer.pad_token, tokenizer.eos_token):
        tokenizer.pad_token = pad
        labels = DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)["labels"]
        left.append(int((labels == tokenizer.eos_token_id).sum()))
        print(f"pad token {pad}: {left[-1]} labels of EOS in {len(rows)} examples")
    return left


def temperature_and_stopping(profile):
    """Predict the EOS rate of the fine-tuned policy at temperatures 0.5 and 1.5; then sample 48 answers at each.

    A high temperature moves probability from likely to unlikely tokens. Where an answer should end EOS is the likely
    one, so more answers miss their end and run into the limit. A low one has nothing to gain where nearly all stop.
    """
    tokenizer, model = models.load_tokenizer(profile), models.load_policy(profile, models.start_key(profile))
    prompts, rates = list(prompt_rows(profile, tokenizer, "validation")["prompt"][:48]), {}
    for temperature in (0.5, 1.0, 1.5):
        changed = replace(profile, decoding=replace(profile.decoding, temperature=temperature))
        answers = decode(changed, model, tokenizer, prompts, "sample")
        rates[temperature] = np.mean([answer.ended for answer in answers])
        tokens = np.mean([len(answer.token_ids) for answer in answers])
        print(f"temperature {temperature}: EOS rate {rates[temperature]:.2f}, {tokens:.0f} tokens on average")
    return rates


def predictions(profile, model: str) -> tuple[list[str], list[str]]:
    """The answers to the test prompts by the published decoding, as the notebooks kept them, and the references."""
    rows = outputs.read_json(profile, f"predictions_{model}.json")
    return [row["prediction"] for row in rows], [row["reference"] for row in rows]


def rouge_by_hand(profile):
    """Compute ROUGE-1 of the fine-tuned answers without a stemmer, and compare it with rlhf.metrics, which stems.

    F = 2 overlap / (words of both texts). Stemming makes some different words equal and no equal words different: it
    can only raise the overlap, and with it the score of every answer.
    """
    mine, texts = [], predictions(profile, models.start_key(profile))
    for pair in zip(*texts, strict=True):
        answer, reference = (Counter(re.findall("[a-z0-9]+", text.lower())) for text in pair)
        mine.append(2 * (answer & reference).total() / max(1, answer.total() + reference.total()))
    stemmed = metrics.rouge_per_example(*texts)["rouge1"]
    print(f"by hand {np.mean(mine):.4f}, stemmed {stemmed.mean():.4f}")
    return np.array(mine), stemmed


def bootstrap_by_hand(profile):
    """The 95 % interval of fine-tuned minus base in ROUGE-1: by your own bootstrap, by the normal law, and unpaired.

    Draw prompts with replacement, take the mean difference, repeat, and read off two quantiles. With hundreds of
    prompts the normal law gives nearly the same. Unpaired, the variance lacks the term -2 Cov(a, b): pairing gains
    only where prompts are hard or easy for both models.
    """
    a, b = (metrics.rouge_per_example(*predictions(profile, m))["rouge1"] for m in (models.start_key(profile), "base"))
    draws = np.random.default_rng(1).integers(len(a), size=(4000, len(a)))
    found = {"by hand": np.quantile((a - b)[draws].mean(axis=1), (0.025, 0.975))}
    found["rlhf.metrics"] = metrics.paired_difference(a, b)[1:]
    for name, variance in (("normal law", np.var(a - b)), ("unpaired", np.var(a) + np.var(b))):
        found[name] = np.mean(a - b) + 1.96 * np.sqrt(variance / len(a)) * np.array([-1, 1])
    print(*(f"{name:<12} [{low:+.3f}, {high:+.3f}]" for name, (low, high) in found.items()), sep="\n")
    return found


SOLUTIONS = (labels_by_hand, space_in_the_template, loss_by_hand, adapter_weights, rank_of_the_update)
SOLUTIONS += (collator_that_masks_pad, temperature_and_stopping, rouge_by_hand, bootstrap_by_hand)

if __name__ == "__main__":
    set_up(run := load_profile())
    for solution in SOLUTIONS:
        print("", solution.__name__, sep="\n")
        solution(run)
