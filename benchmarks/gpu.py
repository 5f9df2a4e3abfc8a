"""What a GPU does otherwise than a CPU, on stand-ins at GPT-2's shape: a part of benchmarks/gpu.sh.

python benchmarks/gpu.py stand-ins FOLDER    # writes FOLDER/model and FOLDER/pairs.jsonl, for RLHF_MODEL, RLHF_DATASET
python benchmarks/gpu.py checks FOLDER       # losses CPU against CUDA, 4-bit kernels, PPO in bfloat16: FOLDER/*.csv

--shape tiny is for tests. What only CUDA can do is left out without one, with a line that says so.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from rlhf import models, outputs, runtime, sft
from rlhf.generation import right_padded
from rlhf.ppo.actors import LARGEST_SAMPLER_GAP
from rlhf.profiles import set_up
from rlhf.template import format_prompt
from rlhf.training import lora_config

import bitsandbytes
import pandas as pd
import torch

from measure import machine, take_turn
from ways import ppo_trainer_of, run_of
from workload import SHAPES, Workload, make_workload, on_gpu

STEPS, PAIRS = 20, 160
LARGEST_CURVE_GAP = 1e-2  # in nats, after STEPS steps in float32 whose products are summed in another order

LARGEST_KERNEL_GAP = 0.02  # of the norm of the logits: the kernels compute in bfloat16 where it is native


def write_stand_ins(load: Workload, folder: Path) -> None:
    load.policy().save_pretrained(folder / "model")
    load.tokenizer.save_pretrained(folder / "model")
    lines = (json.dumps(row) for row in load.pairs)
    outputs.write_text(folder / "pairs.jsonl", "".join(f"{line}\n" for line in lines))


def loss_curve(load: Workload, rows, device: str) -> list[float]:
    """The losses of STEPS steps of fine-tuning in float32 on a device, without dropout: all that chance could do."""
    model = load.policy().to(device).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    losses = []
    for step in range(STEPS):
        part = rows.select(range(4 * step, 4 * step + 4))
        ids, mask = (tensor.to(device) for tensor in right_padded(list(part["input_ids"]), load.tokenizer.pad_token_id))
        labels, _ = right_padded(list(part["labels"]), sft.IGNORED)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels.to(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def compare_curves(load: Workload, rows) -> pd.DataFrame:
    """Columns step, cpu and, where there is one, cuda. Raises ValueError where they part."""
    curves = {"step": range(1, STEPS + 1), "cpu": loss_curve(load, rows, "cpu")}
    if not on_gpu():
        print("loss curves: no CUDA here, so the CPU's is compared with none")
        return pd.DataFrame(curves)
    frame = pd.DataFrame(curves | {"cuda": loss_curve(load, rows, "cuda")})
    gap = (frame.cpu - frame.cuda).abs().max()
    print(f"loss curves: CPU and CUDA differ by at most {gap:.1e} nats in {STEPS} steps")
    if not gap <= LARGEST_CURVE_GAP:
        raise ValueError(f"the losses on CPU and CUDA differ by {gap:.2g} nats, more than {LARGEST_CURVE_GAP:g}.")
    return frame


@torch.no_grad()
def dequantised(quantized, whole) -> torch.nn.Module:
    """The whole model with what the 4-bit weights stand for, in float32. GPT-2 keeps its matrices transposed."""
    for name, module in quantized.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            whole.get_submodule(name).weight.copy_(weight.t())
    return whole


def four_bit(load: Workload, rows) -> pd.DataFrame:
    """QLoRA on the 4-bit kernels of this device: their error, the seconds of a pass over the rows, megabytes.

    Raises ValueError where the kernels' logits are not those of the weights that they stand for.
    """
    outputs.save_checkpoint(load.profile, "base", load.policy(), load.tokenizer)
    whole, quantized = models.load_base(load.profile), models.load_base(load.profile, quantized=True)
    row = {"whole_mb": models.weight_bytes(whole) / 1e6, "four_bit_mb": models.weight_bytes(quantized) / 1e6}
    ids = torch.tensor([rows["input_ids"][0]], device=runtime.device())
    with torch.no_grad():
        exact = dequantised(quantized, whole).eval()(input_ids=ids).logits.float()
        gap = ((quantized.eval()(input_ids=ids).logits.float() - exact).norm() / exact.norm()).item()
    if not gap <= LARGEST_KERNEL_GAP:
        raise ValueError(f"the 4-bit kernels' logits are off by {gap:.2g}, more than {LARGEST_KERNEL_GAP:g}.")
    adapter = lora_config(load.profile.sft.lora, "CAUSAL_LM", quantized)
    options = {"learning_rate": 2e-4, "epochs": 1, "adapter": adapter}
    trainer = sft.make_trainer(load.profile, "qlora", quantized, load.tokenizer, rows, None, **options)
    turn = take_turn(run_of(trainer))
    said = "CUDA's kernels" if on_gpu() else "the CPU's own code, no CUDA here"
    print(f"4-bit ({said}): logits off by {gap:.1e}; QLoRA on {len(rows)} texts takes {turn.seconds:.1f} s")
    return pd.DataFrame([row | {"kernel_gap": gap, "texts": len(rows), **turn._asdict()}])


def ppo_in_16_bit(load: Workload, updates: int = 3) -> pd.DataFrame:
    """Updates of PPO under autocast, with what sampler and trainer differ by in nats."""
    if not (on_gpu() and runtime.bf16_is_native()):
        print("PPO in bfloat16: no GPU with it here; float32 is run")
    trainer = ppo_trainer_of(load)
    gap = trainer.check_sampler()
    rows = pd.DataFrame([trainer.step() for _ in range(updates)]).assign(sampler_gap=gap)
    print(f"PPO: sampler and trainer differ by {gap:.1e} nats a token, at most {LARGEST_SAMPLER_GAP} may be")
    return rows


def checks(load: Workload, folder: Path) -> None:
    examples = {"prompt": [format_prompt(p) for p in load.pairs["prompt"]], "completion": list(load.pairs["chosen"])}
    rows = sft.tokenize(examples, load.tokenizer)
    tables = {
        "loss_curves": lambda: compare_curves(load, rows),
        "four_bit": lambda: four_bit(load, rows),
        "ppo_in_16_bit": lambda: ppo_in_16_bit(load),
    }
    for name, make in tables.items():  # each is kept at once
        frame = make().assign(machine=machine(), torch=torch.__version__)
        outputs.merge_table(folder / f"{name}.csv", frame, "machine")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("stand-ins", "checks"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="gpt2")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLHF_OUTPUTS"] = folder
        load = make_workload(SHAPES[options.shape], PAIRS)
        set_up(load.profile)
        (write_stand_ins if options.what == "stand-ins" else checks)(load, options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
