"""The lab's base model: a small GPT-2 with its own tokenizer, pretrained on text of the lab world."""

import json
import time

from rlhf import outputs, runtime
from rlhf.lab.corpus import documents
from rlhf.template import TEMPLATE

import numpy as np
import torch
from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

EOS, PAD = "<|endoftext|>", "<|pad|>"
# Attention written out. On a CPU the gradient of torch's fused kernel took more than a quarter of forward and backward
# of a pretraining step, and the whole step a third longer than without it.
CPU_ATTENTION = "eager"


def train_tokenizer(texts: list[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's, with a pad token that is not the end-of-sequence token."""
    bpe = ByteLevelBPETokenizer()
    # The template is part of what is tokenised later, so its words should not fall apart into bytes.
    learnt = [*texts, *[TEMPLATE] * 100]
    bpe.train_from_iterator(learnt, vocab_size=vocabulary, special_tokens=[EOS, PAD], show_progress=False)
    trained = Tokenizer.from_str(bpe.to_str())
    tokens = {"bos_token": EOS, "eos_token": EOS, "pad_token": PAD}
    return PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=context, **tokens)


def load_or_pretrain(profile) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The base model and tokenizer from checkpoints/<profile>/base, pretrained first where they are missing.

    A checkpoint that was made with other settings is not used.
    """
    path = outputs.checkpoint_path(profile, "base")
    made_with = path / "lab.json"
    settings = {"seed": profile.seed, "max_steps": profile.max_steps, **vars(profile.lab)}
    del settings["pairs"]
    if made_with.exists() and json.loads(made_with.read_text(encoding="utf-8")) == settings:
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=CPU_ATTENTION)
        return model, AutoTokenizer.from_pretrained(path)
    model, tokenizer = pretrain(profile)
    outputs.save_checkpoint(profile, "base", model, tokenizer)
    outputs.write_text(made_with, json.dumps(settings))
    return model, tokenizer


def _new_model(lab, tokenizer) -> GPT2LMHeadModel:
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = GPT2Config(
        **{"vocab_size": len(tokenizer), "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": pad},
        **{"n_positions": lab.context, "n_embd": lab.width, "n_layer": lab.layers, "n_head": lab.heads},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        activation_function="gelu_pytorch_tanh",  # GPT-2's, computed in one step
        attn_implementation=CPU_ATTENTION,
    )
    return GPT2LMHeadModel(config)


def pretrain(profile) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Train a GPT-2 from scratch to continue text of the lab world. Minutes on two cores at the lab profile."""
    lab = profile.lab
    texts = documents(lab.documents, profile.seed)
    tokenizer = train_tokenizer(texts[:20_000], lab.vocabulary, lab.context)
    rows = _rows(texts, tokenizer, lab.pretraining_tokens)
    with runtime.isolated_generator(profile.seed):
        model = _new_model(lab, tokenizer)
    steps = min(lab.pretraining_steps, profile.max_steps or lab.pretraining_steps)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lab.pretraining_learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lab.pretraining_learning_rate, steps + 1, pct_start=0.05)
    bf16 = runtime.bf16_is_native(torch.device("cpu"))  # the model stays there: what a GPU can do is no matter
    losses, started = [], time.perf_counter()
    progress = tqdm(range(steps), desc="pretraining", unit="step", mininterval=5)
    for step in progress:
        batch = rows[torch.arange(step * lab.pretraining_batch, (step + 1) * lab.pretraining_batch) % len(rows)]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=batch, labels=batch.masked_fill(batch == tokenizer.pad_token_id, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{np.mean(losses[-50:]):.2f}", refresh=False)
    outputs.update_run(profile, pretraining={"steps": steps, "seconds": round(time.perf_counter() - started, 1)})
    return model.eval(), tokenizer


def _rows(texts: list[str], tokenizer, length: int) -> torch.Tensor:
    """Whole texts, each ended by EOS, packed into rows of at most `length` tokens and padded: (rows, length).

    Cut into rows at any place, most answers would lose their question, and the model would learn to do without it
    (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"). A text longer than a row loses its end.
    """
    ids = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    from trl import pack_dataset  # the demo page loads a base without it

    packed = pack_dataset(Dataset.from_dict({"input_ids": ids}), length)["input_ids"]
    rows = torch.full((len(packed), length), tokenizer.pad_token_id)
    for row, tokens in zip(rows, packed, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
