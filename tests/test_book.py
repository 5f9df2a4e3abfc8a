"""The book has every notebook, and what builds it is pinned beside the other requirements."""

import re

from rlhf.outputs import ROOT

from test_project import pins


def test_contents_are_all_notebooks_in_their_order_and_the_documentation():
    listed = re.findall(r"^\.\./(\S+)$", (ROOT / "book/index.md").read_text(), re.MULTILINE)
    notebooks = [*sorted(ROOT.glob("0?_*/*.ipynb")), *sorted(ROOT.glob("recipes/*.ipynb"))]
    documentation = [f"docs/{name}.md" for name in ("settings", "checkpoints", "scaling", "layout")]
    assert set(documentation) == {f"docs/{path.name}" for path in ROOT.glob("docs/*.md")}
    pages = [str(path.relative_to(ROOT)) for path in notebooks] + documentation
    assert listed == [page.rsplit(".", 1)[0] for page in pages]


def test_what_builds_it_is_pinned_and_pinned_once():
    others = [pins(name) for name in ("requirements.txt", "demo/requirements.txt", "constraints.txt")]
    book = pins("requirements-book.txt")
    assert {"myst-nb", "sphinx-book-theme"} <= book.keys()
    assert not any(book.keys() & other.keys() for other in others)
