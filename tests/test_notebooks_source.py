"""The source that a notebook shows is that of the function, in a block that GitHub renders as code."""

import ast
import inspect
import textwrap

from rlhf.notebooks.rendering import clean_output
from rlhf.notebooks.source import show
from rlhf.ppo import algorithm
from rlhf.ppo.trainer import PPOTrainer

import pytest
from IPython.core.formatters import DisplayFormatter
from nbformat.v4 import new_output

SHOWN = (algorithm.gae, algorithm.masked_whiten, algorithm._ChosenLogprobs, PPOTrainer.step, PPOTrainer.optimise)


def block(*functions) -> str:
    """The code between the fences."""
    first, *code, last = show(*functions).data.split("\n")
    assert (first, last) == ("```python", "```")
    return "\n".join(code)


@pytest.mark.parametrize("function", SHOWN)
def test_code_is_the_functions_own_and_the_docstring_its_first_line(function):
    shown, own = ast.parse(block(function)), ast.parse(textwrap.dedent(inspect.getsource(function)))
    docstrings = [ast.get_docstring(tree.body[0]) for tree in (shown, own)]
    assert docstrings[0] == docstrings[1].split("\n")[0]
    for tree in (shown, own):
        del tree.body[0].body[0]  # the docstring
    assert ast.dump(shown) == ast.dump(own)


def test_comments_and_functions_without_a_docstring_stay_as_they_are():
    def double(x):
        # twice as much
        return 2 * x

    assert block(double) == "def double(x):\n    # twice as much\n    return 2 * x"


def test_several_functions_stand_in_one_block_in_the_order_given():
    together = block(algorithm.response_mask, algorithm.masked_mean)
    assert together == f"{block(algorithm.response_mask)}\n\n\n{block(algorithm.masked_mean)}"


def test_rendering_keeps_it_as_markdown_without_an_address():
    data, metadata = DisplayFormatter().format(show(algorithm.gae))
    assert data["text/markdown"].startswith("```python\ndef gae(")
    output = new_output("display_data", data=data, metadata=metadata)
    assert clean_output(output, 1) == output
    assert " at 0x" not in data["text/plain"]
