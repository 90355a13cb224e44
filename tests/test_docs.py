"""Links in the Markdown files lead somewhere, and the code of the page on stories runs."""

import importlib.util
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import bdl
from bdl.svi.checks import Chains
from bdl.svi.reference import Reference

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("research/*.md")]
)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert missing == []


def least_squares(story, data):
    """In the place of NUTS, which has tests of its own: the posterior under flat priors, of a known noise."""
    x = np.stack([np.ones_like(data["height"]), data["height"]], axis=1)
    found, (squares,), *_ = np.linalg.lstsq(x, data["weight"])
    noise = np.sqrt(squares / (len(x) - 2))
    random = np.random.default_rng(1)
    intercept, slope = random.multivariate_normal(found, noise**2 * np.linalg.inv(x.T @ x), size=4000).T
    draws = {"intercept": intercept, "slope": slope, "noise": noise * (1 + random.normal(size=4000) / np.sqrt(400))}
    return Reference(draws, Chains(np.stack(list(draws.values()), axis=1).reshape(4, 1000, 3), divergences=0))


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the page's distributions are TensorFlow's")
@pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning")  # ArviZ on a row of high leverage
def test_the_code_of_the_page_on_stories_runs_and_bears_out_what_it_says(monkeypatch):
    monkeypatch.setattr(bdl.svi, "nuts", least_squares)
    found = {"__name__": "page"}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "svi.md").read_text(), flags=re.DOTALL):
        if "arviz" not in code or importlib.util.find_spec("arviz_stats") is not None:
            exec(compile(code, "svi.md", "exec"), found)
    model, narrow, reference, data = (found[name] for name in ("model", "narrow", "reference", "data"))
    assert np.abs(model.compare(reference).sd_error[:2]).max() < 0.15
    assert narrow.compare(reference).sd_error[:2].max() < -0.9
    assert model.k_hat(data, seed=0).is_reliable
    assert model.k_hat(data, seed=0).effective_sample_size > 3500
    assert narrow.k_hat(data, seed=0).effective_sample_size < 1000
