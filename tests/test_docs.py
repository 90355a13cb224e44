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


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_name_of_bdl_exists(page):
    if page.name == "CHANGELOG.md":
        return  # names what there was, too
    missing = []
    for name in set(re.findall(r"\bbdl((?:\.[a-zA-Z]\w*)+)", page.read_text())):
        found = bdl
        for part in name.strip(".").split("."):
            found = getattr(found, part, None)
        if found is None:
            missing.append(f"bdl{name}")
    assert missing == []


GUIDES = sorted([*ROOT.glob("docs/guides/*.md"), *ROOT.glob("docs/start/*.md")])


@pytest.mark.parametrize("page", GUIDES, ids=[page.stem for page in GUIDES])
def test_a_guide_is_short_and_leads_on(page):
    text = page.read_text()
    assert len(text.splitlines()) < 150
    assert page.name == "index.md" or "\n## See also\n" in text


def test_every_layer_stands_in_the_table_of_the_guide():
    text = (ROOT / "docs" / "guides" / "choosing-layers.md").read_text()
    rank1 = ["Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D"]
    others = ["Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", "DepthwiseConv1D", "DepthwiseConv2D"]
    mean_field = [*rank1, *others, "SeparableConv1D", "SeparableConv2D"]
    recurrent = ["LSTM", "GRU", "SimpleRNN", "Embedding", "MultiHeadAttention"]
    normalization = ["BatchNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"]
    families = {
        "Rank1": [*rank1, "Embedding"],
        "Reparameterization": [*mean_field, *recurrent, *normalization],
        "Flipout": mean_field,
        "LocalReparameterization": mean_field,
    }
    alone = {"ConcreteDropout", "VariationalGaussianDropout", "MCDropout", "MCGaussianDropout", "MCAlphaDropout"}
    alone |= {"MCGaussianNoise", "InputFactors", "LatentAttention", "LatentMultiHeadAttention", "NormalLatent"}
    alone |= {"TemperatureScaling", "Variational"}
    ranges = {f"MCSpatialDropout{rank}D" for rank in (1, 2, 3)}
    listed = {base + suffix for suffix, bases in families.items() for base in bases} | alone | ranges
    layers = {name for name in bdl.layers.__all__ if isinstance(getattr(bdl.layers, name), type)}
    not_layers = {"Alignment", "GaussianCode", "LatentReport"}
    assert listed == layers - not_layers
    for name in alone | set(recurrent) | set(normalization):
        assert re.search(rf"\b{name}\b", text), name


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
    assert found["groups"].k_hat(found["visits"], seed=0).is_reliable


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the page's distributions are TensorFlow's")
def test_the_code_of_the_page_on_codes_runs():
    found = {"__name__": "page"}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "codes.md").read_text(), flags=re.DOTALL):
        exec(compile(code, "codes.md", "exec"), found)
    assert found["report"].quantities.local.active_units > 0
    assert found["model"].bounds(found["test"], found["test"], num_samples=5).importance_weighted < 0
