"""Two guides run as notebooks, and the code that the site shows without running it runs here.

The site's build executes all pages. These two are the shortest.
"""

import contextlib
import importlib.util
import io
import math
import re
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

import bdl

DOCS = Path(__file__).parents[1] / "docs"
SHORTEST = ("conformal-sets", "probabilities-in-a-csv")


def is_installed(*names):
    return all(importlib.util.find_spec(name) is not None for name in names)


@pytest.mark.tensorflow
@pytest.mark.skipif(not is_installed("nbclient", "jupytext", "ipykernel"), reason="needs the docs extra")
@pytest.mark.filterwarnings("default")  # of the notebooks' own machinery
@pytest.mark.parametrize("name", SHORTEST)
def test_a_guide_runs_as_a_notebook(name, tmp_path):
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(DOCS / "guides" / f"{name}.md")
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 4
    assert all(cell.execution_count for cell in cells)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


def shown(page):
    """The code that a page shows and does not run."""
    text = (DOCS / page).read_text()
    return [textwrap.dedent(code) for code in re.findall(r"^ *```python\n(.*?)^ *```", text, flags=re.DOTALL | re.M)]


def run(page, **found):
    for code in shown(page):
        exec(compile(code, page, "exec"), found)
    return found


def classifier():
    return keras.Sequential([keras.Input((4,)), bdl.layers.DenseRank1(3)])


def test_no_page_shows_code_that_runs_nowhere():
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if shown(page)}
    assert pages == {
        "codes.md",  # tests/test_docs.py runs it, and svi.md
        "svi.md",
        "explain/diagnostics.md",
        "explain/sklearn.md",
        "guides/distributed.md",
        "guides/image-pipelines.md",
        "guides/from-tfp-layers.md",
        "guides/from-pyro-and-numpyro.md",
    }


def test_what_the_pages_say_of_early_stopping_and_noise_runs(capsys):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(1200, 4)).astype("float32"), random.integers(0, 3, 1200)
    given = {"bdl": bdl, "keras": keras, "math": math, "likelihood": bdl.likelihoods.Categorical()}
    found = run("explain/diagnostics.md", **given, network=classifier(), num_examples=1200, batch_size=64, x=x, y=y)
    assert found["model"].kl_weight.steps == 20 * 19
    assert "gradient" in capsys.readouterr().out
    assert found["noise"].num_examples == 1200
    found = run("guides/image-pipelines.md", **given, network=classifier())
    assert found["model"].kl_weight.steps == 5 * 19


def test_a_network_as_a_function_runs():
    from bdl.sklearn import BayesianClassifier

    network = run("explain/sklearn.md", keras=keras, BayesianClassifier=BayesianClassifier)["network"]
    assert network(4, 3).output_shape == (None, 3)


@pytest.mark.core
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="devices of JAX")
@pytest.mark.filterwarnings("default")  # of the schedule, in a fit of one epoch
def test_a_model_in_the_scope_of_a_distribution_runs():
    random = np.random.default_rng(0)
    given = {"x": random.normal(size=(64, 4)).astype("float32"), "y": random.integers(0, 3, 64)}
    found = run("guides/distributed.md", keras=keras, bdl=bdl, **given)
    assert found["prediction"].probabilities.shape == (64, 3)


@pytest.mark.tensorflow
@pytest.mark.filterwarnings("default")  # tfp.layers' own
def test_the_model_of_tfp_layers_runs():
    import tensorflow as tf
    import tensorflow_probability as tfp
    import tf_keras

    x = np.random.default_rng(0).normal(size=(32, 64)).astype("float32")
    given = {"np": np, "tf": tf, "tfp": tfp, "tfd": tfp.distributions, "tf_keras": tf_keras}
    found = run("guides/from-tfp-layers.md", **given, x=x, y=np.arange(32) % 10, x_test=x[:5])
    np.testing.assert_allclose(found["probabilities"].sum(-1), 1, rtol=1e-5)


@pytest.mark.core
@pytest.mark.skipif(not is_installed("numpyro"), reason="needs NumPyro")
@pytest.mark.filterwarnings("default")  # NumPyro's and JAX's own
def test_the_model_of_numpyro_runs():
    import numpyro
    from jax import random
    from numpyro import distributions, optim
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoMultivariateNormal

    given = {"numpyro": numpyro, "dist": distributions, "random": random, "optim": optim, "SVI": SVI}
    effect, error = np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    given |= {"Trace_ELBO": Trace_ELBO, "AutoMultivariateNormal": AutoMultivariateNormal}
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        found = run("guides/from-pyro-and-numpyro.md", **given, effect=effect, error=error)
    assert found["posterior"]["z"].shape == (1000, 8)
