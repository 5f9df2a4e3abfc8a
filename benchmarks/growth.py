"""How seconds and memory of a fine-tuning step grow with the data, the length of the texts and the size of the model.

Each axis is fitted by a power: seconds ~ value ** exponent, a straight line between logarithms. What models of 1.5B and
7B need is reckoned from the fit over sizes, not measured.
"""

import dataclasses

from rlhf import models, runtime
from rlhf.sft import IGNORED

import numpy as np
import pandas as pd
import torch

from measure import only_new_garbage, take_turn
from workload import Shape, Workload, make_workload

BATCH, TURNS = 4, 3
RECKONED = (1.5e9, 7e9)
MEASURES = ("seconds", "memory_mb")


@dataclasses.dataclass(frozen=True)
class Axis:
    """What is varied: the number of texts, their tokens, or the model."""

    texts: tuple[int, ...]
    tokens: tuple[int, ...]
    shapes: tuple[Shape, ...]


LAB = Shape(4, 224, 7, vocabulary=3200)
AXES = {
    "gpt2": Axis((16, 32, 64), (128, 256, 512, 1024), (LAB, Shape(12, 768, 12), Shape(24, 1024, 16))),
    "tiny": Axis(
        (4, 8, 16),
        (16, 32, 64),
        tuple(Shape(2, width, 2, context=64, vocabulary=500, beam_tokens=6, share=0.1) for width in (16, 32, 64)),
    ),
}


def measure(model, texts: int, tokens: int) -> dict[str, float]:
    """The median seconds of one pass with AdamW over so many texts of equal length, in batches of BATCH, and its peak.

    Memory is that of activations, gradients and Adam's moments: what comes on top of the weights.
    """
    ids = torch.arange(texts * tokens).view(texts, tokens) % model.config.vocab_size
    labels = torch.cat([torch.full_like(ids[:, : tokens // 4], IGNORED), ids[:, tokens // 4 :]], dim=1)
    ids, labels = ids.to(runtime.device()), labels.to(runtime.device())

    def run() -> None:
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for start in range(0, texts, BATCH):
            kind = runtime.device().type
            with torch.autocast(kind, torch.bfloat16, enabled=runtime.bf16_is_native()):
                rows = slice(start, start + BATCH)
                loss = model(input_ids=ids[rows], labels=labels[rows]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    with only_new_garbage():
        turns = [take_turn(run) for _ in range(TURNS + 1)][1:]
    return {"seconds": float(np.median([t.seconds for t in turns])), "memory_mb": max(t.memory_mb for t in turns)}


def exponent(rows: pd.DataFrame, measure: str) -> tuple[float, float]:
    """Exponent and logarithm of the factor of the power that fits a measure over `value` best."""
    slope, start = np.polyfit(np.log(rows.value), np.log(rows[measure]), 1)
    return float(slope), float(start)


def table(load: Workload, axis: Axis) -> pd.DataFrame:
    """A row for each point: axis, value, seconds, memory_mb, the exponents of its axis, and whether it is reckoned."""
    model, length = load.policy().train(), max(8, load.shape.context // 8)
    points = [("texts", count, measure(model, count, length)) for count in axis.texts]
    points += [("tokens", tokens, measure(model, 2 * BATCH, tokens)) for tokens in axis.tokens]
    for shape in axis.shapes:
        other = make_workload(shape, count=1).policy().train()
        points.append(("parameters", models.trainable_parameters(other), measure(other, 2 * BATCH, axis.tokens[1])))
        del other
    found = pd.DataFrame([{"axis": name, "value": float(value), **row} for name, value, row in points])
    rows = []
    for name, part in found.groupby("axis", sort=False):
        fits = {each: exponent(part, each) if part[each].gt(0).all() else (np.nan, np.nan) for each in MEASURES}
        of_axis = {f"{each}_exponent": fit[0] for each, fit in fits.items()}
        rows.append(part.assign(**of_axis, reckoned=False))
        said = ", ".join(f"{each} ~ {name}^{fit[0]:.2f}" for each, fit in fits.items())
        print(f"growth: {said}", flush=True)
        if name == "parameters":
            for size in RECKONED:
                guess = {each: float(np.exp(start + slope * np.log(size))) for each, (slope, start) in fits.items()}
                rows.append(pd.DataFrame([{"axis": name, "value": size, **guess, **of_axis, "reckoned": True}]))
                print(f"  {size / 1e9:g}B, reckoned: {guess['seconds']:.3g} s, {guess['memory_mb'] / 1e3:.3g} GB")
    return pd.concat(rows, ignore_index=True)
