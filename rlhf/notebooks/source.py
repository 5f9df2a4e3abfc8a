"""Functions of the package as a notebook shows them: their source as it is now, so that no copy can differ from it."""

import ast
import inspect
import textwrap

from IPython.display import Markdown


def show(*functions) -> Markdown:
    """The source of functions, methods or classes as one Python block, which Jupyter and GitHub render.

    Of a docstring only the first line stands: the prose of the notebook has the rest.
    """
    return Markdown("```python\n" + "\n\n\n".join(map(_source, functions)) + "\n```")


def _source(function) -> str:
    lines = textwrap.dedent(inspect.getsource(function)).rstrip().split("\n")
    (definition,) = ast.parse("\n".join(lines)).body
    first = definition.body[0]
    if ast.get_docstring(definition) and first.end_lineno > first.lineno:
        lines[first.lineno - 1 : first.end_lineno] = [lines[first.lineno - 1] + '"""']
    return "\n".join(lines)
