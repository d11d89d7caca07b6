"""The docs site: ``sphinx-build -W docs build/site``. Nothing is fetched, neither by a build nor by its readers."""

import raydelta

project, author = "raydelta", "the raydelta authors"
version = release = raydelta.__version__
copyright = author  # noqa: A001 - Sphinx's name
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["results"]
html_theme = "furo"
html_title = "raydelta"
html_show_sphinx = False

myst_heading_anchors = 3

# The notebook is executed by every build, in a folder of its own; -D nb_execution_mode=off leaves its outputs out.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # lines of progress
nb_ipywidgets_js = {}  # they would come from elsewhere, and there are none

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
