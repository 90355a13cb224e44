"""The site: `sphinx-build -W docs site`."""

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import bdl

project = "bdl"
author = "The bdl developers"
copyright = "2026, The bdl developers"
version = release = bdl.__version__

extensions = [
    "house_docstrings",
    "public_names",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_extensions", "gallery/**/*.ipynb", "gallery/*.ipynb"]
if os.environ.get("BDL_DOCS_INTERSPHINX"):  # links into other sites need a network, so they are made on request only
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }
templates_path = ["_templates"]
html_theme = "pydata_sphinx_theme"
html_title = "bdl"
html_static_path = ["_static"]
html_css_files = ["bdl.css"]
html_theme_options = {
    "logo": {"text": "bdl"},
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
}

# A word in single backticks is code, as in the docstrings.
default_role = "code"
autosummary_generate = True
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
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_timeout = 600  # of a cell, on a busy machine
nb_execution_in_temp = True  # what a page writes is gone afterwards
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # compilers and devices announce themselves there
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Every example has a page. Those named in `filename_pattern` run; the others take minutes, or need data.
_QUICK_EXAMPLES = (
    "calibration_report",
    "converted_network",
    "custom_loop",
    "diabetes_regression",
    "diagnosis_and_remedy",
    "doubtful_digits",
    "predictive_bands",
    "unseen_inputs",
    "which_key",
)
_PARTS = (  # of other examples
    "alignment_figure",
    "exposures",
    "inheritance",
    "populations",
    "reaction_figure",
    "reaction_schemes",
    "surface_alone",
    "surface_counts",
    "surface_figure",
    "volatility_figure",
    "volatility_filter",
    "volatility_garch",
    "volatility_network",
    "word_pairs",
)
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": rf"/({'|'.join(_QUICK_EXAMPLES)})\.py$",
    "ignore_pattern": rf"({'|'.join(_PARTS)})\.py$",
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "image_scrapers": ("tight_figures.scrape",),
    "remove_config_comments": True,
}


def _skip_what_others_wrote(app, what, name, member, skip, options):
    """Leaves out what scikit-learn adds to each of its estimators, whose docstrings refer to its own site."""
    function = getattr(member, "__func__", member)
    module = getattr(function, "__module__", None) or ""
    how_it_is_made = name in ("keras_layer", "estimator_name", "gamma_name", "wraps")
    return True if how_it_is_made or module.startswith("sklearn.") or name.endswith("_request") else None


def _leave_out_links_back(app, pagename, templatename, context, doctree):
    """Leaves out viewcode's links from the source to the reference: it expects one page for all names of a module."""
    if pagename.startswith("_modules/"):
        body = re.sub(r'<a class="viewcode-back"[^>]*>.*?</a>', "", context["body"])
        context["body"] = re.sub(r'<li><a href="builtins.html">builtins</a></li>', "", body)


def setup(app):
    """Tells Sphinx."""
    app.connect("autodoc-skip-member", _skip_what_others_wrote)
    app.connect("html-page-context", _leave_out_links_back)
