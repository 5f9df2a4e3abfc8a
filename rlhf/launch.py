"""What the scripts of `make script` share: several processes train, the first of them writes."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from rlhf import finite, models, outputs, runtime
from rlhf.notebooks import execution
from rlhf.profiles import Profile, set_up

from accelerate import PartialState

STAGES = {  # the numbered folder whose helpers a stage imports, and what is set in its script
    "sft": ("01_supervised_finetuning", {"METHOD": "full"}),
    "sft_qlora": ("01_supervised_finetuning", {"METHOD": "qlora"}),
    "reward": ("02_reward_modeling", {}),
    "ppo": ("03_ppo_alignment", {}),
}


def write_script(profile: Profile, stage: str) -> Path:
    """Write outputs/scripts/<profile>/<stage>: train.py and the helpers of the stage's numbered folder, to be changed.

    Returns the path of train.py. Raises ValueError for a stage that is none, FileExistsError where it is there already.
    """
    if stage not in STAGES:
        raise ValueError(f"STAGE={stage!r} is no stage; choose one of {', '.join(STAGES)}.")
    folder, settings = STAGES[stage]
    text = (outputs.ROOT / "scripts" / "stages" / f"{stage.removesuffix('_qlora')}.py").read_text(encoding="utf-8")
    for name, value in ({"PROFILE": profile.name} | settings).items():
        text = text.replace(f'{name} = ""', f'{name} = "{value}"')
    written = outputs.root() / "scripts" / profile.name / stage
    if written.exists():
        raise FileExistsError(f"{outputs.show(written)} is there and may hold changes; remove it to write it anew.")
    with outputs.new_folder(written) as target:
        (target / "train.py").write_text(text, encoding="utf-8")
        for helper in sorted((outputs.ROOT / folder).glob("*.py")):
            shutil.copyfile(helper, target / helper.name)
    return written / "train.py"


@contextmanager
def processes(profile: Profile) -> Iterator[bool]:
    """Set this process up as one of those that a launcher started; whether it is the first, which alone may write.

    The first holds the outputs folder and prints. The others wait until it has prepared the base model, where no
    notebook has, and at the end for each other. What was trained must not be in use by then: it holds the group of the
    processes, and where it outlives the group, ending it can wait for ever. Raises ValueError where the outputs are
    those of other settings.
    """
    on_cpu = runtime.device().type == "cpu"
    state = PartialState(cpu=on_cpu)  # joins the others, and chooses this process's GPU
    with ExitStack() as stack:
        if state.is_main_process:
            stack.enter_context(outputs.run_lock())
        else:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        set_up(profile)
        if state.is_main_process:
            execution.check_settings(profile)
            if not outputs.checkpoint_path(profile, "base").is_dir():
                models.prepare_base(profile)
        state.wait_for_everyone()
        yield state.is_main_process
        sys.stdout.flush()
        runtime.free_memory()  # what was trained, which holds its trainer in a cycle
        state.wait_for_everyone()
        if state.is_main_process:
            outputs.forget_training(profile)
    state.destroy_process_group()


def save(profile: Profile, name: str, trainer, tokenizer) -> None:
    """Write what `trainer` trained to checkpoints/<profile>/<name>; every process must call it, the first writes.

    Weights that are split among the processes are gathered. Of PPO the policy is written.
    """
    weights = trainer.accelerator.get_state_dict(getattr(trainer, "model_wrapped", trainer.model))
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        if hasattr(model, "value_model"):
            model, start = model.policy, "policy."
            weights = {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}
        finite.require(f"checkpoint {name}", weights, advice="Nothing is saved.")
        gathered = SimpleNamespace(save_pretrained=partial(model.save_pretrained, state_dict=weights))
        print(f"saved to {outputs.show(outputs.save_checkpoint(profile, name, gathered, tokenizer))}")
    trainer.accelerator.wait_for_everyone()
