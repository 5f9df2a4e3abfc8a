"""Pretraining of the lab's base model, once for all runs: `make pretrain` writes rlhf/lab/base, which is committed."""

import dataclasses
import json
import math
import time
from pathlib import Path

from rlhf import finite, outputs, runtime
from rlhf.lab.base_model import LANGUAGE_FILE, TOKENIZER_DOCUMENTS, language, new_model, train_tokenizer
from rlhf.lab.corpus import documents
from rlhf.lab.fluency import PAIRS_FILE, word_pairs
from rlhf.resume import load_optimizer_tensors, optimizer_tensors
from rlhf.training import lr_scale

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoModelForCausalLM
from trl import pack_dataset

VALIDATION = 600  # documents that are never trained on
CHECKPOINTS = 80  # over the run; where each is written, the validation loss is measured


def pretrain(profile, checkpoint: Path) -> tuple[torch.nn.Module, object, pd.DataFrame]:
    """Train a GPT-2 from scratch to continue text of the lab world: the model, its tokenizer and its losses.

    The losses have the columns step, tokens, loss (the mean since the row before), validation_loss and seconds (of
    training so far). Resumes at `checkpoint`, a folder that is written as the run goes on. Raises ValueError where that
    is of other settings.
    """
    lab, settings = profile.lab, profile.lab.pretraining
    steps = min(settings.steps, profile.max_steps or settings.steps)
    made_with = dataclasses.asdict(lab) | {"seed": profile.seed, "steps": steps}
    del made_with["pairs"], made_with["pretrained"]  # nothing here depends on them
    texts = documents(lab.documents, profile.seed)
    tokenizer = train_tokenizer(texts[:TOKENIZER_DOCUMENTS], lab.vocabulary, lab.context)
    rows = _rows(texts, tokenizer, settings.tokens)
    validation = _rows(documents(VALIDATION, profile.seed + 1), tokenizer, settings.tokens)
    model = new_model(lab, tokenizer, profile.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    first, losses = _resume(checkpoint, made_with, model, optimizer)
    bf16 = runtime.bf16_is_native(torch.device("cpu"))  # the model stays there: what a GPU can do is no matter
    started = time.perf_counter() - (losses[-1]["seconds"] if losses else 0.0)
    every, since, cycle = max(1, steps // CHECKPOINTS), [], math.ceil(steps / settings.cycles)
    for step in tqdm(range(first, steps), desc="pretraining", initial=first, total=steps, mininterval=5):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * lr_scale(step % cycle, cycle // 20, cycle)
        batch = rows[torch.arange(step * settings.batch_size, (step + 1) * settings.batch_size) % len(rows)]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = _loss(model, tokenizer, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        finite.require(f"pretraining, step {step + 1}", {"loss": loss.item(), "gradient": norm.item()}, kept=checkpoint)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        since.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == steps:
            tokens = (step + 1) * settings.batch_size * settings.tokens
            losses.append({"step": step + 1, "tokens": tokens, "loss": float(np.mean(since))})
            losses[-1]["validation_loss"] = _validation_loss(model, tokenizer, validation, settings.batch_size)
            losses[-1]["seconds"] = round(time.perf_counter() - started, 1)
            since = []
            _save(checkpoint, made_with, model, optimizer, losses)
    return model.eval(), tokenizer, pd.DataFrame(losses)


def ship(profile, model, tokenizer, losses: pd.DataFrame, folder: Path) -> None:
    """Write `folder` anew: model (16-bit safetensors), tokenizer, losses, model card, and what is known of the text.

    That is a fingerprint of its language (LANGUAGE_FILE) and every pair of neighbouring words in it (PAIRS_FILE).
    """
    last = losses.iloc[-1]
    settings = "\n".join(
        f"| {name} | {value} |"
        for name, value in (vars(profile.lab) | vars(profile.lab.pretraining)).items()
        if name not in ("pairs", "pretrained", "pretraining")
    )
    card = (Path(__file__).parent / "lab" / "base_card.md").read_text(encoding="utf-8")
    with outputs.new_folder(folder) as new:
        model.half().save_pretrained(new)
        model.float()
        tokenizer.save_pretrained(new)
        losses.round(4).to_csv(new / "loss.csv", index=False)
        (new / LANGUAGE_FILE).write_text(f"{language()}\n", encoding="utf-8")
        pairs = sorted(map(" ".join, word_pairs(documents(profile.lab.documents, profile.seed))))
        (new / PAIRS_FILE).write_text("\n".join(pairs) + "\n", encoding="utf-8")
        filled = card.format(
            parameters=f"{model.num_parameters():,}",
            documents=f"{profile.lab.documents:,}",
            tokens=f"{int(last.tokens):,}",
            steps=f"{int(last.step):,}",
            minutes=f"{last.seconds / 60:.0f}",
            loss=f"{last.validation_loss:.3f}",
            perplexity=f"{np.exp(last.validation_loss):.2f}",
            hardware=runtime.hardware(),
            seed=profile.seed,
            settings=settings,
        )
        (new / "README.md").write_text(filled, encoding="utf-8")


def _loss(model, tokenizer, batch: torch.Tensor) -> torch.Tensor:
    return model(input_ids=batch, labels=batch.masked_fill(batch == tokenizer.pad_token_id, -100)).loss


@torch.no_grad()
def _validation_loss(model, tokenizer, rows: torch.Tensor, batch_size: int) -> float:
    """Mean over the tokens that are predicted."""
    losses, counts = [], []
    for batch in rows.split(4 * batch_size):
        losses.append(_loss(model, tokenizer, batch).item())
        counts.append((batch[:, 1:] != tokenizer.pad_token_id).sum().item())
    return float(np.average(losses, weights=counts))


def _save(checkpoint: Path, made_with: dict, model, optimizer, losses: list[dict]) -> None:
    with outputs.new_folder(checkpoint) as folder:
        model.save_pretrained(folder)
        save_file(optimizer_tensors(optimizer), folder / "optimizer.safetensors")
        (folder / "state.json").write_text(json.dumps({"of": made_with, "losses": losses}), encoding="utf-8")


def _resume(checkpoint: Path, made_with: dict, model, optimizer) -> tuple[int, list[dict]]:
    """Put model and optimiser where a run stopped: the number of steps that are done, and their losses."""
    if not (checkpoint / "state.json").exists():
        return 0, []
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    if state["of"] != json.loads(json.dumps(made_with)):
        raise ValueError(
            f"{outputs.show(checkpoint)} is of a run with other settings; delete it to start over, or set them back."
        )
    model.load_state_dict(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).state_dict())
    load_optimizer_tensors(optimizer, load_file(checkpoint / "optimizer.safetensors"))
    return state["losses"][-1]["step"], state["losses"]


def _rows(texts: list[str], tokenizer, length: int) -> torch.Tensor:
    """Whole texts, each ended by EOS, packed into rows of at most `length` tokens and padded: (rows, length).

    Cut into rows at any place, most answers would lose their question, and the model would learn to do without it
    (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"). A text longer than a row loses its end.
    """
    ids = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    packed = pack_dataset(Dataset.from_dict({"input_ids": ids}), length)["input_ids"]
    rows = torch.full((len(packed), length), tokenizer.pad_token_id)
    for row, tokens in zip(rows, packed, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
