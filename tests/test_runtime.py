"""The machine and the seeds: precision only where it is native, one seeding function, generators left alone."""

import ast
import gc
import os
import platform
import random

from rlhf import runtime
from rlhf.outputs import ROOT

import numpy as np
import psutil
import pytest
import torch
from conftest import run_python


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_one_seed_sets_every_generator():
    runtime.seed_everything(3)
    first = draws()
    runtime.seed_everything(3)
    assert draws() == first
    runtime.seed_everything(4)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_isolated_block_draws_from_its_seed_and_leaves_the_generators_as_they_were():
    runtime.seed_everything(0)
    expected = draws()
    runtime.seed_everything(0)
    with runtime.isolated_generator(7):
        inside = draws()
    assert draws() == expected
    with runtime.isolated_generator(7):
        assert draws() == inside
    with pytest.raises(KeyError), runtime.isolated_generator(7):
        raise KeyError
    runtime.seed_everything(7)
    assert draws() == inside


def test_one_module_alone_seeds_global_generators():
    """A name like torch.manual_seed in any other file of the project would make a result depend on what ran before."""
    found = []
    files = [*ROOT.glob("rlhf/**/*.py"), *ROOT.glob("0*/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("demo/*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
                continue
            name = ast.unparse(node.func)
            own = "Generator()" in name  # a generator of its own may have any seed
            if name.split(".")[-1] in ("manual_seed", "manual_seed_all", "seed", "set_seed") and not own:
                found.append((path.relative_to(ROOT).as_posix(), name))
    assert found and {path for path, _ in found} == {"rlhf/runtime.py"}, found


@pytest.mark.parametrize(
    ("capability", "avx512_bf16", "expected"),
    [("AVX512", True, True), ("AVX2", True, False), ("AVX512", False, False), ("DEFAULT", None, False)],
)
def test_bf16_is_not_used_where_the_processor_only_emulates_it(monkeypatch, capability, avx512_bf16, expected):
    found = {} if avx512_bf16 is None else {"avx512_bf16": avx512_bf16}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert runtime.bf16_is_native(torch.device("cpu")) is expected


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_bf16_is_not_asked_for_it(monkeypatch, native):
    """A T4 or V100 says that it supports bfloat16, and means an emulation."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    monkeypatch.setattr(torch, "autocast", lambda *_, enabled: asked.append(enabled))
    assert runtime.bf16_is_native() is native
    runtime.autocast(torch.device("cuda"))
    assert asked == [native]


def test_what_the_gpu_can_do_is_not_asked_about_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert runtime.bf16_is_native() and not runtime.bf16_is_native(torch.device("cpu"))


def test_clock_waits_for_the_gpu(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    assert runtime.clock() <= runtime.clock() and len(waited) == 2


@pytest.mark.parametrize(("given", "seen"), [(None, "0"), ("1", "1"), ("3,1", "3"), ("", "")])
def test_one_gpu_is_seen_of_those_that_may_be_used(monkeypatch, given, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    code = "import rlhf, os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    assert run_python(code, **environment).strip() == repr(seen)


def test_peak_memory_is_that_of_the_process_and_none_where_the_system_does_not_tell():
    peak = runtime.peak_memory_mb(os.getpid())
    assert peak is None or 50 < peak < 200_000
    assert runtime.peak_memory_mb(2**30) is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator, which is left alone")
def test_memory_that_is_no_longer_used_is_given_back_though_cycles_and_the_allocator_hold_it():
    class Trainer:
        def __init__(self):  # blocks below the size that glibc takes from the system one by one
            self.itself, self.weights = self, [np.ones(100_000, dtype=np.int8) for _ in range(3_000)]
            self.last = np.ones(100_000, dtype=np.int8)

    def used() -> float:
        return psutil.Process().memory_info().rss / 1e6

    gc.disable()
    try:
        last, before = Trainer().last, used()  # the last block keeps the others from the end of the heap
        assert used() > 300 and last.all()
        runtime.free_memory()
    finally:
        gc.enable()
    assert used() < before - 250


def test_hardware_is_said_in_words(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runtime, "cpu_count", lambda: 1)
    assert runtime.hardware() == "1 CPU core"
    monkeypatch.setattr(runtime, "cpu_count", lambda: 2)
    assert runtime.hardware() == "2 CPU cores"


def test_apples_gpu_is_taken_where_there_is_no_cuda(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.device() == torch.device("mps") and runtime.hardware() == "Apple's GPU (MPS)"
    assert runtime.clock() <= runtime.clock() and len(waited) == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runtime.device() == torch.device("cuda")


def test_float64_is_not_asked_of_apples_gpu_which_has_none():
    assert runtime.finest(torch.device("mps")) == torch.float32
    assert {runtime.finest(torch.device(kind)) for kind in ("cpu", "cuda")} == {torch.float64}


def test_memory_is_that_of_the_machine_or_what_is_given(monkeypatch):
    monkeypatch.delenv("RLHF_MEMORY_GB", raising=False)
    assert 1e8 < runtime.memory_bytes() < 1e14
    monkeypatch.setenv("RLHF_MEMORY_GB", "1.5")
    assert runtime.memory_bytes() == 1.5e9


@pytest.mark.parametrize("value", ["much", "0", "-1", "nan", "inf"])
def test_memory_that_is_no_number_is_named(monkeypatch, value):
    monkeypatch.setenv("RLHF_MEMORY_GB", value)
    with pytest.raises(ValueError, match=rf"RLHF_MEMORY_GB='{value}' is no positive number; give gigabytes"):
        runtime.memory_bytes()
