"""The automatic twin: judged at its best epoch, chosen on data that the verdict does not use."""

import keras
import numpy as np
import pytest

import bdl
from bdl.diagnostics import diagnose
from bdl.diagnostics.measure import take_probe
from bdl.diagnostics.twin import fit_of_twin, train_twin

CATEGORICAL = bdl.likelihoods.Categorical()


def noisy(n, seed, wrong=0.3):
    """Two classes that the first of twenty entries tells apart, with wrong labels."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 20)).astype("float32")
    y = (x[:, 0] > 0).astype(int)
    return x, np.where(random.random(n) < wrong, 1 - y, y)


def model_of():
    keras.utils.set_random_seed(0)
    layers = [bdl.layers.DenseFlipout(64, activation="relu"), bdl.layers.DenseFlipout(2)]
    model = bdl.VariationalModel(keras.Sequential([keras.Input((20,)), *layers]), CATEGORICAL, kl_weight=1.0)
    model.compile(keras.optimizers.Adam(0.01))
    return model


def test_a_twin_that_overfits_is_judged_at_its_best_epoch():
    x, y = noisy(400, 0)
    held = take_probe(noisy(1000, 1), 1000, CATEGORICAL, "data")
    fits = [
        fit_of_twin(train_twin(model_of(), x, y, CATEGORICAL, 40, 32, 0, held_out), held, CATEGORICAL)
        for held_out in (0.2, 0.0)
    ]
    assert fits[0].nll_bma < 0.85 < 1.2 < fits[1].nll_bma  # which has learned wrong labels by heart


def test_labels_without_a_signal_are_no_collapse():
    random = np.random.default_rng(0)
    x, held = (random.normal(size=(200, 20)).astype("float32") for _ in range(2))
    y, held_y = (random.integers(0, 2, 200) for _ in range(2))
    model = model_of()
    model.fit(x, y, epochs=12, verbose=0)
    report = diagnose(model, x, y, twin="auto", validation_data=(held, held_y), num_samples=4)
    assert report.verdict == "no_signal"
    assert "the labels do not follow from the inputs" in report.evidence[0]


@pytest.mark.parametrize(
    ("likelihood", "draw"),
    [
        (bdl.likelihoods.NegativeBinomial(), lambda random: random.negative_binomial(1.0, 0.1, 300)),
        (bdl.likelihoods.Poisson(), lambda random: random.poisson(3.0, 300)),
        (bdl.likelihoods.StudentT(), lambda random: random.standard_t(3.0, 300)),
        (bdl.likelihoods.Normal(scale=0.3), lambda random: 0.3 * random.normal(size=300)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_noise_teaches_nothing_whatever_the_likelihood(likelihood, draw):
    """A network of one bias, fitted, is the best constant: it gains nothing."""
    random = np.random.default_rng(0)
    x, y = np.zeros((300, 1), "float32"), draw(random)
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    likelihood = type(likelihood).from_config(likelihood.get_config())
    model = bdl.diagnostics.twin.compiled(network, likelihood, 1.0, keras.optimizers.Adam(0.05))
    model.fit(x, y, epochs=30, batch_size=100, verbose=0)
    fit = fit_of_twin(model, take_probe((x, y), 300, likelihood, "data"), likelihood)
    assert -0.02 < fit.gain < 1e-4
    assert fit.gain_error < 0.02


def test_a_twin_sees_a_sample_of_very_many_examples(monkeypatch):
    monkeypatch.setattr(bdl.diagnostics.twin, "_TWIN_ROWS", 40)
    seen = []
    monkeypatch.setattr(
        bdl.VariationalModel,
        "fit",
        lambda self, x, y, **kwargs: seen.append((len(x), len(kwargs["validation_data"][1]))),
    )
    train_twin(model_of(), *noisy(500, 0), CATEGORICAL, 2, 32, 0)
    assert seen == [(32, 8)]
