"""The site: `sphinx-build -W docs site`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import bdl  # noqa: E402

project = "bdl"
author = "The bdl developers"
copyright = "2026, The bdl developers"
version = release = bdl.__version__

extensions = [
    "house_docstrings",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_extensions"]
templates_path = ["_templates"]
html_static_path = ["_static"]
html_theme = "pydata_sphinx_theme"
html_title = "bdl"
html_theme_options = {
    "logo": {"text": "bdl"},
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
}

# A word in single backticks is code, as in the docstrings.
default_role = "code"
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # the docstrings say what arguments are
autodoc_default_options = {"members": True, "member-order": "bysource"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    "Input shape",
    "Output shape",
    ("Attributes", "params_style"),
    "Source",
    "Sources",
]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 180
nb_execution_raise_on_error = True


def _skip_what_others_wrote(app, what, name, member, skip, options):
    """Leaves out what scikit-learn adds to each of its estimators, whose docstrings refer to its own site."""
    function = getattr(member, "__func__", member)
    module = getattr(function, "__module__", None) or ""
    return True if module.startswith("sklearn.") or name.endswith("_request") else None


def setup(app):
    """Tells Sphinx."""
    app.connect("autodoc-skip-member", _skip_what_others_wrote)
