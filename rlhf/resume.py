"""Checkpoints of a training, from which it goes on after an interruption: on a CPU bit by bit as if there were none.

That of a run lies in outputs.training_dir(profile)/<run>, as safetensors and JSON: transformers' own are pickles. It is
put in place when it is complete, and only the last one is kept. It is taken up where settings, model, data, start
weights and code are the same, else the training starts over. A training that has ended leaves its weights and its log
there until what it was for is saved too, so that an interruption after it costs no second training.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import shutil
import time
from importlib import metadata
from pathlib import Path

from rlhf import outputs, runtime

import pyarrow
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerState

VERSIONS = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")]
STATE, LOG = "state.json", "trainer_state.json"  # the second is that of transformers
COPIES = 7  # of the trained weights, each with Adam's two moments: two checkpoints while one takes the other's place


class Timer:
    """Says when a checkpoint is due: runtime.checkpoint_seconds after the last one."""

    def __init__(self):
        self.every, self.last = runtime.checkpoint_seconds(), time.monotonic()

    def due(self) -> bool:
        if time.monotonic() - self.last < self.every:
            return False
        self.last = time.monotonic()
        return True


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model that learn, by name: all, some layers, or adapters."""
    return {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}


@torch.no_grad()
def put(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give a model the weights that `trained` found."""
    for name, weight in trained(model).items():
        weight.copy_(split_as(weight, weights[name]))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimiser as tensors by name, for a safetensors file."""
    states = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, state in states.items() for name, value in state.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put an optimiser where `optimizer_tensors` found one, all but its learning rates."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    states: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        i, name = key.split(".", 1)
        states.setdefault(int(i), {})[name] = split_as(weights[int(i)], value)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that are split among the processes (FSDP2) put together: every process takes part, the first has them."""
    found = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if PartialState().is_main_process:
            found[name] = full.cpu()
    return found


def split_as(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A tensor that `whole` put together, split as the weight that it is or that it is a moment of."""
    if not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


def digest(*parts) -> str:
    """A hash of texts, bytes or arrays of bytes."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()[:16]


def of_weights(*models: torch.nn.Module) -> str:
    """A hash of all weights, frozen ones too; those that models share count once."""
    weights = {weight.data_ptr(): weight.data for model in models for weight in model.parameters()}
    return digest(*(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy() for weight in weights.values()))


def of_rows(rows: Dataset | None) -> str:
    """A hash of what stands in a data set, in its order."""
    if rows is None:
        return "none"
    table = rows.with_format("arrow")[:].replace_schema_metadata(None).combine_chunks()
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return digest(sink.getvalue())


def write(path: Path, documents: dict[str, dict], **tensors: dict[str, torch.Tensor]) -> None:
    """Write the folder of a checkpoint: each of `documents` as JSON, each of `tensors` as <name>.safetensors."""
    with outputs.new_folder(path) as folder:
        for name, part in tensors.items():
            save_file({key: tensor.contiguous() for key, tensor in part.items()}, folder / f"{name}.safetensors")
        for name, document in documents.items():
            (folder / name).write_text(json.dumps(document), encoding="utf-8")
        outputs.write_manifest(folder)


def read(path: Path) -> tuple[dict, dict[str, dict[str, torch.Tensor]]]:
    """STATE and tensors of a checkpoint. Raises ValueError where a file is missing, cut off or changed."""
    try:
        if fault := outputs.fault_of(path):
            raise ValueError(fault)
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        return state, {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{outputs.show(path)} can't be read ({error}): it may be cut off") from error


def newest(folder: Path) -> Path | None:
    """The checkpoint in a training's folder after most steps; their names are <unit>_<steps> and <unit>_<steps>_end."""
    found = [path for path in sorted(folder.glob("[a-z]*_[0-9]*")) if path.is_dir()]
    return max(found, key=lambda path: (int(path.name.split("_")[1]), path.name), default=None)


def keep_only(path: Path) -> None:
    """Delete the other checkpoints of the same training."""
    for other in sorted(path.parent.glob(f"{path.name.split('_')[0]}_[0-9]*")):
        if other != path:
            shutil.rmtree(other, ignore_errors=True)


def changed(before: dict, now: dict) -> list[str]:
    """The names of what differs between what a checkpoint belongs to and what is asked for."""
    now = json.loads(json.dumps(now))
    return [name for name in before | now if before.get(name) != now.get(name)]


def is_own_end(state: dict) -> bool:
    """Whether this process itself ended the training: doing it once more means to train once more."""
    return state["ended"] and state["process"] == os.getpid()


def require_room(folder: Path, *models: torch.nn.Module) -> None:
    """Raise OSError where the disk has no room for the checkpoints of a training of these models."""
    needed = COPIES * sum(weight.nbytes for model in models for weight in trained(model).values())
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            f"{free / 1e6:,.0f} MB are free for {outputs.show(folder)}, and its checkpoints and what is made of them "
            f"take up to {needed / 1e6:,.0f} MB; free some, or set RLHF_OUTPUTS to a folder on another disk."
        )


class Resumable:
    """A Trainer of transformers that goes on from its own checkpoint; args.output_dir is the folder of these.

    transformers restores the position in the data and the log; what it would load by pickle is put back here.
    Checkpoints are written where the loss has been logged, so that no sum since then is lost. Of several processes the
    first says when, writes them, and says which one is taken up; all must see its folder. With DeepSpeed, which splits
    the weights by its own ways, there are none.
    """

    resumes = True  # False: it starts over, and leaves nothing
    timer = taken = None

    def train(self, *args, **kwargs):
        self.folder = Path(self.args.output_dir)
        require_room(self.folder, self.model)
        if not self.resumes or self.is_deepspeed_enabled:
            return super().train(*args, **kwargs)
        self.timer, self.taken, path = Timer(), None, None
        if self.is_world_process_zero():
            self.stamp = self._stamp()
            path = self._take_up()
        path = _of_the_first(path)
        if path and self.taken is None:
            self.taken = read(path)
        if path and self.taken[0]["ended"]:
            self._load_from_checkpoint(path)
            self.state = TrainerState.load_from_json(str(path / LOG))
            self.model.train(self.taken[0]["training"])
            return None
        result = super().train(*args, **kwargs, **({"resume_from_checkpoint": str(path)} if path else {}))
        self._write(ended=True)
        return result

    def _stamp(self) -> dict[str, str]:
        """What a checkpoint belongs to."""
        model, classes = self.model, [kind for kind in type(self).__mro__ if kind.__module__.startswith("rlhf.")]
        settings = {name: value for name, value in self.args.to_dict().items() if name != "output_dir"}
        configs = [getattr(model, "config", None), *getattr(model, "peft_config", {}).values()]
        of_model = [config.to_dict() for config in configs if config]
        return {
            "settings": digest(json.dumps(settings, sort_keys=True, default=str)),
            "model": digest(str(model), json.dumps(of_model, sort_keys=True, default=_in_order)),
            "weights": of_weights(model),
            "training data": of_rows(self.train_dataset),
            "validation data": of_rows(self.eval_dataset),
            "code": digest(*VERSIONS, *(Path(inspect.getfile(kind)).read_bytes() for kind in classes)),
        }

    def _take_up(self) -> Path | None:
        """The checkpoint that this training goes on from, read; None where it starts over, with a line on why."""
        self.taken, run, path = None, self.folder.name, newest(self.folder)
        if path is None:
            return None
        try:
            state, tensors = read(path)
        except ValueError as error:
            print(f"{run} starts over: {error}.")
            return None
        if others := changed(state["of"], self.stamp):
            print(f"{run} starts over: {outputs.show(path)} is of other {', '.join(others)}.")
            return None
        if is_own_end(state):
            return None
        self.taken = state, tensors
        print(f"{run} goes on after step {state['step']} of {self.args.max_steps}, from {outputs.show(path)}")
        return path

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        super().log(logs, *args, **kwargs)
        before_end = self.state.global_step < self.state.max_steps  # from the last step on there is none to go on with
        if "loss" in logs and self.timer and before_end and _of_the_first(self.timer.due()):
            self.control.should_save = True

    def _write(self, ended: bool) -> None:
        drawn = gather_object([{"now": runtime.generator_states(), "epoch": self.epoch_began}])
        weights = whole(trained(self.model))
        moments = {} if ended else whole(optimizer_tensors(self.optimizer.optimizer))
        if not self.is_world_process_zero():
            return
        step = self.state.global_step
        state = {"of": self.stamp, "step": step, "ended": ended, "process": os.getpid(), "generators": drawn}
        state |= {"training": self.model.training, "tokens": getattr(self, "_total_train_tokens", 0)}
        state["schedule"] = self.lr_scheduler.state_dict()
        path = self.folder / (f"step_{step:06d}" + "_end" * ended)
        log = dataclasses.asdict(self.state)
        write(path, {STATE: state, LOG: log}, weights=weights, optimizer=moments)
        keep_only(path)

    def _save_checkpoint(self, *_) -> None:
        self._write(ended=False)

    def _load_from_checkpoint(self, *_) -> None:
        put(self.model, self.taken[1].pop("weights"))

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        if checkpoint is None:
            return
        load_optimizer_tensors(self.optimizer.optimizer, self.taken[1].pop("optimizer"))
        self.lr_scheduler.load_state_dict(self.taken[0]["schedule"])
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self._total_train_tokens = self.taken[0]["tokens"]

    def _load_rng_state(self, checkpoint) -> None:
        if checkpoint is not None:
            runtime.set_generator_states(self._drawn("now"))

    def _drawn(self, when: str) -> dict:
        """Where the generators of this process were when the checkpoint was written: now, or as the epoch began."""
        return self.taken[0]["generators"][self.args.process_index][when]

    def _run_epoch(self, *args, **kwargs):
        if self.taken and kwargs["epoch"] == kwargs["epochs_trained"]:  # the order of its batches is drawn once more
            begun = kwargs["steps_trained_in_current_epoch"]
            runtime.set_generator_states(self._drawn("epoch" if begun else "now"))
        self.epoch_began = runtime.generator_states()
        return super()._run_epoch(*args, **kwargs)


def _of_the_first(value):
    """What the first process has; all must ask."""
    return broadcast_object_list([value])[0]


def _in_order(value):
    return sorted(value) if isinstance(value, set) else str(value)
