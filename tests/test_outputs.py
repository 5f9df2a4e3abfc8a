"""Outputs: whole files or none, equal runs give equal bytes, and what is missing is named."""

import hashlib
import json
import os
import signal
import subprocess
import sys

from rlhf import outputs, registry

import pandas as pd
import pytest


class Part:
    """Something with save_pretrained: a model, an adapter, a tokenizer."""

    def __init__(self, name: str, text: str):
        self.name, self.text = name, text

    def save_pretrained(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.name).write_text(self.text)


class FailingPart(Part):
    def save_pretrained(self, folder):
        super().save_pretrained(folder)
        raise OSError("disk full")


def contents(folder) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != outputs.MANIFEST}


@pytest.fixture
def figure():
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2, 3], [1, 4, 9])
    return figure


def test_outputs_go_to_a_folder_per_kind_and_profile(profile, tmp_path):
    root = tmp_path / "outputs"
    assert outputs.root() == root
    assert outputs.evaluation_dir(profile) == root / "evaluation" / "smoke"
    assert outputs.plots_dir(profile) == root / "plots" / "smoke"
    assert outputs.logs_dir(profile) == root / "logs" / "smoke"
    assert outputs.notebooks_dir(profile) == root / "notebooks" / "smoke"
    assert outputs.checkpoint_path(profile, "base") == root / "checkpoints" / "smoke" / "base"


def test_outputs_stand_in_the_repository_without_the_variable(monkeypatch):
    monkeypatch.delenv("RLHF_OUTPUTS", raising=False)
    assert outputs.root() == outputs.ROOT / "outputs"
    assert (outputs.ROOT / "rlhf" / "outputs.py").is_file()


def test_show_names_no_machine_path(profile, tmp_path):
    assert outputs.show(outputs.ROOT / "rlhf" / "data.py") == "rlhf/data.py"
    assert outputs.show(outputs.evaluation_dir(profile) / "a.csv") == "outputs/evaluation/smoke/a.csv"
    assert outputs.show(tmp_path.parent / "elsewhere.csv") == "elsewhere.csv"


def test_csv_is_read_as_it_was_written(profile):
    frame = pd.DataFrame({"model": ["base", 'a "quoted", name'], "mean": [0.125, -3.5], "n": [300, 1]})
    path = outputs.write_csv(profile, "rouge.csv", frame)
    assert path == outputs.evaluation_dir(profile) / "rouge.csv"
    pd.testing.assert_frame_equal(outputs.read_csv(profile, "rouge.csv"), frame)


def test_equal_frames_give_equal_bytes_and_noise_in_the_last_digits_is_not_written(profile):
    first = outputs.write_csv(profile, "a.csv", pd.DataFrame({"x": [0.1 + 0.2, 1 / 3]})).read_bytes()
    second = outputs.write_csv(profile, "a.csv", pd.DataFrame({"x": [0.3, 1 / 3 + 1e-12]})).read_bytes()
    assert first == second == b"x\n0.3\n0.333333\n"


def test_json_is_read_as_it_was_written(profile):
    content = [{"prompt": "Où?", "reference": 'a\n"b"', "prediction": "日本"}, {"n": 1.5, "none": None}]
    path = outputs.write_json(profile, "predictions_base.json", content)
    assert outputs.read_json(profile, "predictions_base.json") == content
    assert "日本" in path.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").endswith("]\n")


def test_equal_figures_give_equal_bytes(profile, figure):
    first = outputs.write_figure(profile, "a.png", figure).read_bytes()
    assert first == outputs.write_figure(profile, "b.png", figure).read_bytes()
    assert first.startswith(b"\x89PNG")


def failing_writes(profile):
    class Unprintable:
        def __str__(self):
            raise RuntimeError("stop")

    class HalfFigure:
        def savefig(self, path, **_):
            path.write_bytes(b"half")
            raise RuntimeError("stop")

    return {
        "csv": (
            outputs.evaluation_dir(profile) / "old",
            lambda: outputs.write_csv(profile, "old", pd.DataFrame({"x": [Unprintable()]})),
        ),
        "json": (outputs.evaluation_dir(profile) / "old", lambda: outputs.write_json(profile, "old", {"x": object()})),
        "text": (
            outputs.evaluation_dir(profile) / "old",
            lambda: outputs.write_text(outputs.evaluation_dir(profile) / "old", "a \ud800 lone surrogate"),
        ),
        "figure": (outputs.plots_dir(profile) / "old", lambda: outputs.write_figure(profile, "old", HalfFigure())),
    }


@pytest.mark.parametrize("kind", ["csv", "json", "text", "figure"])
def test_failing_writer_leaves_the_old_file_and_no_temporary_one(profile, kind):
    path, write = failing_writes(profile)[kind]
    outputs.write_text(path, "old")
    with pytest.raises((RuntimeError, TypeError, UnicodeEncodeError)):
        write()
    assert contents(path.parent) == {"old": "old"}


def test_missing_csv_or_json_is_named_with_what_to_do(profile):
    with pytest.raises(FileNotFoundError, match=r"^outputs/evaluation/smoke/rouge\.csv is missing.*make run"):
        outputs.read_csv(profile, "rouge.csv")
    with pytest.raises(FileNotFoundError, match=r"^outputs/evaluation/smoke/run\.json is missing.*make run"):
        outputs.read_json(profile, "run.json")


def test_merge_csv_replaces_the_rows_of_the_same_key_and_keeps_the_others(profile):
    def frame(*rows):
        return pd.DataFrame(rows, columns=["model", "metric", "mean"])

    outputs.merge_csv(profile, "rouge.csv", frame(("base", "rouge1", 0.1), ("base", "rouge2", 0.2)), "model")
    outputs.merge_csv(profile, "rouge.csv", frame(("ppo", "rouge1", 0.5)), "model")
    outputs.merge_csv(profile, "rouge.csv", frame(("base", "rouge1", 0.3)), "model")
    expected = frame(("base", "rouge1", 0.3), ("ppo", "rouge1", 0.5))
    pd.testing.assert_frame_equal(outputs.read_csv(profile, "rouge.csv"), expected)


def test_merge_csv_by_two_columns_replaces_the_rows_where_both_are_the_same(profile):
    def frame(*rows):
        return pd.DataFrame(rows, columns=["seed", "method", "kl"])

    outputs.merge_csv(profile, "frontier.csv", frame((0, "dpo", 1.0), (1, "dpo", 2.0), (0, "ipo", 3.0)), "seed")
    outputs.merge_csv(profile, "frontier.csv", frame((0, "dpo", 4.5)), ["seed", "method"])
    expected = frame((0, "dpo", 4.5), (1, "dpo", 2.0), (0, "ipo", 3.0))
    pd.testing.assert_frame_equal(outputs.read_csv(profile, "frontier.csv"), expected)


def test_seed_that_is_run_again_leaves_the_order_of_the_rows_as_it_was(profile):
    rows = pd.DataFrame({"model": ["ppo", "base"] * 3, "seed": [0, 0, 1, 1, 2, 2], "mean": [0.5, 1, 2, 3, 4, 5]})
    path = outputs.write_csv(profile, "paired.csv", rows)
    whole = path.read_bytes()
    for seed in (0, 1, 2, 0):
        outputs.merge_csv(profile, "paired.csv", rows[rows.seed == seed], "seed")
        assert path.read_bytes() == whole


def test_merging_the_same_rows_twice_gives_the_same_bytes(profile):
    rows = pd.DataFrame({"model": ["base", "base"], "mean": [1 / 3, 2 / 3]})
    first = outputs.merge_csv(profile, "rouge.csv", rows, "model").read_bytes()
    assert outputs.merge_csv(profile, "rouge.csv", rows, "model").read_bytes() == first


def test_run_json_is_merged_entry_by_entry(profile):
    outputs.update_run(profile, seed=0, seconds={"first": 1.5}, device="cpu")
    outputs.update_run(profile, seconds={"second": 2.5}, device="cuda")
    outputs.update_run(profile, seconds={"first": 9.0})
    expected = {"seed": 0, "seconds": {"first": 9.0, "second": 2.5}, "device": "cuda"}
    assert outputs.read_json(profile, "run.json") == expected


def test_checkpoint_holds_every_part(profile):
    path = outputs.save_checkpoint(profile, "base", Part("model", "m"), Part("tokenizer", "t"))
    assert path == outputs.checkpoint_path(profile, "base") == outputs.require_checkpoint(profile, "base")
    assert contents(path) == {"model": "m", "tokenizer": "t"}


def test_checkpoint_is_replaced_as_a_whole(profile):
    outputs.save_checkpoint(profile, "base", Part("model", "old"), Part("only_in_the_old", "x"))
    path = outputs.save_checkpoint(profile, "base", Part("model", "new"))
    assert contents(path) == {"model": "new"}
    assert [folder.name for folder in path.parent.iterdir()] == ["base"]


def test_old_checkpoint_is_kept_if_saving_fails_and_the_next_save_is_clean(profile):
    path = outputs.save_checkpoint(profile, "base", Part("model", "old"))
    with pytest.raises(OSError, match="disk full"):
        outputs.save_checkpoint(profile, "base", Part("leftover", "x"), FailingPart("model", "half"))
    assert contents(path) == {"model": "old"}
    outputs.save_checkpoint(profile, "base", Part("model", "new"))
    assert contents(path) == {"model": "new"}


def test_first_save_that_fails_leaves_no_checkpoint(profile):
    with pytest.raises(OSError, match="disk full"):
        outputs.save_checkpoint(profile, "base", FailingPart("model", "half"))
    with pytest.raises(FileNotFoundError):
        outputs.require_checkpoint(profile, "base")


@pytest.fixture
def saved(profile):
    """A checkpoint of two files."""
    outputs._sha256.cache_clear()  # as in a process of its own
    return outputs.save_checkpoint(profile, "sft_full_final", Part("model.bin", "weights"), Part("README.md", "card"))


def test_manifest_has_size_and_hash_of_every_file_but_the_card(profile, saved):
    manifest = json.loads((saved / outputs.MANIFEST).read_text())
    assert manifest == {"model.bin": {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}}
    (saved / "README.md").write_text("another card")
    (saved / "note.txt").write_text("of a user")
    assert outputs.require_checkpoint(profile, "sft_full_final") == saved


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "model.bin is missing"),
        (b"weigh", "model.bin has 5 bytes, and 7 were saved"),
        (b"Weights", r"model.bin is not what was saved \(by its SHA-256\)"),
    ],
)
def test_checkpoint_that_is_not_as_it_was_saved_is_named_with_file_and_remedy(profile, saved, content, fault):
    file = saved / "model.bin"
    file.write_bytes(content) if content else file.unlink()
    remedy = r"; run scripts/run_notebooks.py 4_finetune_full, or put the file back\. .*delete its rlhf_manifest.json"
    with pytest.raises(ValueError, match=rf"^checkpoint outputs/checkpoints/smoke/sft_full_final: {fault}{remedy}"):
        outputs.require_checkpoint(profile, "sft_full_final")


@pytest.mark.parametrize("text", ["{", "[1]", '{"../../x": {"bytes": 1, "sha256": ""}}', '{"a": {}}', '{"a": 1}'])
def test_manifest_that_is_none_or_names_a_file_elsewhere_is_refused(profile, saved, text):
    (saved / outputs.MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"sft_full_final: rlhf_manifest.json can't be read"):
        outputs.require_checkpoint(profile, "sft_full_final")


def test_folder_of_a_user_without_a_manifest_is_taken(profile, saved):
    (saved / outputs.MANIFEST).unlink()
    (saved / "model.bin").write_text("other")
    assert outputs.require_checkpoint(profile, "sft_full_final") == saved


def test_next_run_deletes_what_a_killed_process_had_not_put_in_place_and_no_more(profile, monkeypatch):
    folder = outputs.checkpoints_dir(profile)
    dead, alive = (folder / f".{pid}.base.x1" / "new" for pid in (11, 12))
    for path in (dead, alive):
        path.mkdir(parents=True)
    half, hidden = (outputs.evaluation_dir(profile) / name for name in (".11.rouge.csv", ".rouge.csv.lock"))
    for path in (half, hidden):
        outputs.write_text(path, "")
    monkeypatch.setattr(outputs.psutil, "pid_exists", lambda pid: pid != 11)
    with outputs.run_lock():
        pass
    assert [path.exists() for path in (dead.parent, half, alive, hidden)] == [False, False, True, True]


@pytest.mark.parametrize("name", registry.BY_CHECKPOINT)
def test_missing_checkpoint_names_the_notebook_or_the_command_that_makes_it(profile, name):
    with pytest.raises(FileNotFoundError) as caught:
        outputs.require_checkpoint(profile, name)
    model = registry.MODELS[registry.BY_CHECKPOINT[name]]
    maker = model.notebook or f"`{model.command}`"
    assert str(caught.value).startswith(f"checkpoint outputs/checkpoints/smoke/{name} is missing; run {maker} first")
    if model.notebook:
        assert (outputs.ROOT / model.notebook).is_file() and not model.command
    else:
        assert f"\n{model.command.split()[1]}:" in (outputs.ROOT / "Makefile").read_text()


@pytest.mark.parametrize("blocked", ["", "evaluation", "plots/smoke", "logs", "checkpoints"])
def test_outputs_that_cannot_be_written_are_named(profile, blocked):
    path = outputs.root() / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file where a folder should be")  # root may write to any folder, whatever its permissions
    with pytest.raises(PermissionError, match=rf"{path}.*RLHF_OUTPUTS"):
        outputs.check_writable(profile)


def test_check_of_writable_outputs_leaves_no_file(profile):
    outputs.check_writable(profile)
    assert [path for path in outputs.root().rglob("*") if path.is_file()] == []


def test_run_json_is_valid_json_after_each_update(profile):
    for step in range(3):
        path = outputs.update_run(profile, versions={f"package{step}": "1.0"})
        assert len(json.loads(path.read_text())["versions"]) == step + 1


@pytest.mark.parametrize("name", ["", ".", "..", "../a.csv", "a/b.csv", "/a.csv", None])
def test_name_that_leads_out_of_its_folder_is_refused(profile, name):
    for use in (outputs.checkpoint_path, outputs.read_csv, outputs.read_json):
        with pytest.raises(ValueError, match=r"is no name of a file in outputs/\w+/smoke"):
            use(profile, name)
    with pytest.raises(ValueError, match="is no name of a file"):
        outputs.write_json(profile, name, {})


def test_committed_results_are_read_from_their_own_folder(profile, monkeypatch, tmp_path):
    monkeypatch.setattr(outputs, "REFERENCE", tmp_path / "results")
    outputs.write_csv(profile, "a.csv", pd.DataFrame({"x": [1]}))
    path = outputs.write_csv(profile, "a.csv", pd.DataFrame({"x": [2]}), outputs.REFERENCE)
    assert path == tmp_path / "results" / "evaluation" / "smoke" / "a.csv"
    assert outputs.read_csv(profile, "a.csv").x.item() == 1
    assert outputs.read_csv(profile, "a.csv", outputs.REFERENCE).x.item() == 2


def python(code: str, **options) -> subprocess.Popen:
    """A second process with the same outputs; what it prints can be read."""
    code = f"from rlhf import outputs\nclass Smoke:\n    name = 'smoke'\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=outputs.ROOT, stdout=subprocess.PIPE, text=True, **options
    )


def test_two_processes_that_merge_into_one_file_lose_nothing(profile):
    code = "for i in range(15): outputs.update_run(Smoke, seconds={{f'{0}{{i}}': i}})"
    processes = [python(code.format(name)) for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(outputs.read_json(profile, "run.json")["seconds"]) == 30


def test_second_run_is_told_at_once_who_holds_the_outputs(profile, monkeypatch, tmp_path):
    with python("with outputs.run_lock():\n    print('held', flush=True)\n    input()", stdin=subprocess.PIPE) as first:
        assert first.stdout.readline() == "held\n"
        owner = rf"is in use by process {first.pid} \(-c\).*RLHF_OUTPUTS"
        with pytest.raises(BlockingIOError, match=owner), outputs.run_lock():
            pass
        with monkeypatch.context() as patch:
            patch.setenv("RLHF_OUTPUTS", str(tmp_path / "elsewhere"))
            with outputs.run_lock():
                pass
        first.communicate("\n", timeout=60)
    with outputs.run_lock():
        pass


def test_lock_of_a_killed_process_is_free_although_its_child_lives_on(profile):
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    code = f"import subprocess, sys\nwith outputs.run_lock():\n    print({child}.pid, flush=True)\n    input()"
    with python(code, stdin=subprocess.PIPE) as first:
        pid = int(first.stdout.readline())
        first.kill()
        first.wait()
        try:
            os.kill(pid, 0)  # it lives
            with outputs.run_lock():
                pass
        finally:
            os.kill(pid, signal.SIGKILL)


def test_lock_is_given_back_when_a_run_fails(profile):
    with pytest.raises(KeyError), outputs.run_lock():
        raise KeyError
    with outputs.run_lock():
        assert (outputs.root() / ".owner").exists()
    assert not (outputs.root() / ".owner").exists()
