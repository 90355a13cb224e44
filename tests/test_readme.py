"""The README's Python code runs as it stands, and names only what exists."""

import re
from pathlib import Path

import pytest

import bdl

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=[f"block {number}" for number in range(1, len(BLOCKS) + 1)])
def test_code_blocks_run(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.strip()
    for verdict in re.findall(r"print\(report\)  # (\w+ \(\w+\))", code):
        assert verdict in printed


def test_the_first_example_has_fifteen_lines():
    assert len(BLOCKS[0].strip().splitlines()) <= 15


def test_every_name_exists():
    for name in set(re.findall(r"\bbdl((?:\.\w+)+)", TEXT)):
        found = bdl
        for part in name.strip(".").split("."):
            found = getattr(found, part)
        assert found is not None


def test_every_layer_of_the_table_exists():
    rank1 = ["Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D"]
    others = ["Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", "DepthwiseConv1D", "DepthwiseConv2D"]
    mean_field = [*rank1, *others, "SeparableConv1D", "SeparableConv2D"]
    families = {"Rank1": [*rank1, "Embedding"], "Reparameterization": mean_field, "Flipout": mean_field}
    families["LocalReparameterization"] = mean_field
    recurrent = ["LSTM", "GRU", "SimpleRNN", "Embedding", "MultiHeadAttention"]
    normalization = ["BatchNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"]
    families["Reparameterization"] = [*mean_field, *recurrent, *normalization]
    dropout = {"ConcreteDropout", "VariationalGaussianDropout", "MCDropout", "MCGaussianDropout", "MCAlphaDropout"}
    dropout |= {"MCGaussianNoise", "MCSpatialDropout1D", "MCSpatialDropout2D", "MCSpatialDropout3D"}
    expected = {base + suffix for suffix, bases in families.items() for base in bases} | dropout
    others = {"TemperatureScaling", "Variational", "mean_weights"}
    others |= {
        "Alignment",
        "GaussianCode",
        "LatentReport",
        "collect_latents",
        "report_latent",
        "add_local_kl",
        "alignment",
    }
    others |= {"InputFactors", "LatentAttention", "LatentMultiHeadAttention", "NormalLatent"}
    assert expected | others == set(bdl.layers.__all__)
    for name in recurrent + normalization:
        assert f"`{name}`" in TEXT
    for name in ("ConcreteDropout", "MCDropout", "TemperatureScaling", "LatentMultiHeadAttention", "NormalLatent"):
        assert name in TEXT
