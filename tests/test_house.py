"""The plan of the package: imports go down, modules stay small, nothing is imported by path."""

import ast
import json
import re
import subprocess

from rlhf.outputs import ROOT

import pytest

FLOORS = (
    ("runtime", "finite", "outputs", "template", "tokens", "registry", "download"),
    ("profiles", "files", "forms", "data", "sst2", "lab"),
    ("models", "adapters", "generation", "metrics", "laws", "resume", "training"),
    ("pretraining", "sft", "reward", "ppo", "dpo"),
    ("evaluation", "collect", "studies", "plots", "recipes", "alpaca"),
    ("hub", "chat", "demo", "rating", "notebooks", "report", "launch", "export"),
)
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
PACKAGE = ROOT / "rlhf"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(path):
    """The modules of the package that a file imports, at its top or anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "rlhf"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rlhf":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found - {"rlhf"}


def room(module):
    return module.split(".")[1]


def tracked(pattern=""):
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and re.search(pattern, name) and (ROOT / name).exists()]


def lines_of(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_every_room_has_a_floor_and_the_package_says_which():
    rooms = {room(module) for module in MODULES if module != "rlhf"}
    assert rooms == set(FLOOR_OF)
    said = re.findall(r"^\d  (.+)$", (PACKAGE / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert [set(line.split(", ")) for line in said] == [set(floor) for floor in FLOORS]


def test_no_module_imports_from_a_higher_floor():
    up = [
        (module, other)
        for module, path in MODULES.items()
        for other in imported(path)
        if module != "rlhf" and FLOOR_OF[room(other)] > FLOOR_OF[room(module)]
    ]
    assert not up


def test_no_modules_import_each_other_in_a_circle():
    arrows = {module: imported(path) for module, path in MODULES.items()}
    done, active = set(), []

    def visit(module):
        assert module not in active, " -> ".join([*active[active.index(module) :], module])
        if module in done:
            return
        active.append(module)
        for other in sorted(arrows.get(module, ())):
            visit(other)
        active.pop()
        done.add(module)

    for module in sorted(arrows):
        visit(module)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_is_longer_than_a_reader_holds_in_mind(module):
    limit = 259 if module == "rlhf.ppo.algorithm" else 400
    assert lines_of(MODULES[module]) <= limit


def test_nothing_is_imported_by_path():
    for name in tracked(r"\.(py|ipynb)$"):
        if name.startswith("tests/"):
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        for way in ("sys.path", "importlib.util", "exec(", "runpy", "site.addsitedir", "PYTHONPATH"):
            assert way not in text, (name, way)


def test_numbered_folders_hold_notebooks_and_their_small_helpers():
    helpers = {name for name in tracked(r"^0\d_") if not name.endswith(".ipynb")}
    assert helpers == {
        "01_supervised_finetuning/prepare_data.py",
        "02_reward_modeling/data_pipeline.py",
        "03_ppo_alignment/prepare_data.py",
        "03_ppo_alignment/ppo_config.py",
    }
    for helper in helpers:
        others = {folder for folder in ("01_", "02_", "03_") if not helper.startswith(folder)}
        assert not any(folder in (ROOT / helper).read_text(encoding="utf-8") for folder in others)


def test_scripts_are_thin():
    for name in tracked(r"^scripts/.*\.py$"):
        assert lines_of(ROOT / name) <= 70, name


def test_scripts_that_can_not_start_say_so_in_one_line():
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in tracked(r"^scripts/.*\.py$")}
    of_make = {name for name, text in texts.items() if "runtime.command_line(main)" in text}
    assert of_make and of_make == {name for name, text in texts.items() if "@runtime.reported\ndef main(" in text}


def unordered(code: str) -> list[str]:
    """The calls in `code` whose order is the machine's: of the files in a folder, or of equal rows in a sort.

    What is sorted, added up or made a set has no order to lose.
    """
    found = []

    def visit(node, safe):
        name = getattr(getattr(node, "func", None), "attr", getattr(getattr(node, "func", None), "id", ""))
        if isinstance(node, ast.Call) and not safe and name in ("iterdir", "glob", "rglob", "listdir", "scandir"):
            found.append(ast.unparse(node))
        several = name == "sort_values" and isinstance(node.args[0], ast.List)  # which pandas sorts stably
        if (
            name in ("argsort", "sort_values")
            and not several
            and not ast.unparse(node).endswith(("'stable')", "=True)"))
        ):
            found.append(ast.unparse(node))
        safe = safe or name in ("sorted", "sum") or isinstance(node, ast.SetComp)
        for child in ast.iter_child_nodes(node):
            visit(child, safe)

    visit(ast.parse(code), False)
    return found


def test_no_order_is_left_to_the_folder_or_to_the_processor():
    codes = {}
    for name in tracked(r"\.(py|ipynb)$"):
        text = (ROOT / name).read_text(encoding="utf-8")
        if name.endswith(".ipynb"):
            cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
            text = "\n".join("".join(source) for source in cells)
        if not name.startswith("tests/"):
            codes[name] = text
    # The rows of a batch go back to their places; a stable order would change the rounding of every trained number.
    of_actors = ["rollout.attention[rows].sum(dim=1).argsort()", "torch.cat(list(parts)).argsort()"]
    found = {name: calls for name, code in codes.items() if (calls := unordered(code))}
    assert found == {"rlhf/ppo/actors.py": of_actors}
    assert unordered("for f in a.glob('*'): pass") and unordered("x.sort_values('y')") and unordered("np.argsort(x)")


def test_the_code_does_not_grow_unnoticed():
    code = [name for name in tracked(r"\.py$") if not name.startswith(("tests/", "exercises/"))]
    assert sum(lines_of(ROOT / name) for name in code) <= 16_140
