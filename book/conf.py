"""The notebooks as a static site: `make book`. Nothing is executed; what is shown is what the notebooks hold."""

from docutils import nodes

project, author, copyright = "RLHF on GPT-2", "the contributors", "the contributors"
extensions = ["myst_nb", "sphinx-mathjax-offline"]  # formulas without a network
root_doc = "book/index"
include_patterns = ["book/*.md", "docs/*.md", "0?_*/*.ipynb", "recipes/*.ipynb"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
html_theme = "sphinx_book_theme"
html_title = project
html_extra_path = ["root"]  # index.html, which leads to the first page
html_theme_options = {"show_toc_level": 2, "use_download_button": False}


def describe_images(app, doctree) -> None:
    """Give each figure of a notebook an alternative text: the heading that it stands under."""
    for image in doctree.findall(nodes.image):
        section = image.parent
        while section is not None and not isinstance(section, nodes.section):
            section = section.parent
        if section is not None and "alt" not in image:
            image["alt"] = f"Figure: {section.next_node(nodes.title).astext()}"


def setup(app) -> None:
    app.connect("doctree-read", describe_images)
