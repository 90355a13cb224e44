"""Several outputs: likelihoods, labels, weights and predictions meet by name, and what does not is named."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import special, stats

import bdl
from bdl.likelihoods import Categorical, Normal
from bdl.likelihoods.heads import Heads
from bdl.likelihoods.weights import weights_of

RNG = np.random.default_rng(0)
N = 12
X = RNG.normal(size=(N, 4)).astype("float32")
KIND, SIZE = RNG.integers(0, 3, N), RNG.normal(size=(N, 1)).astype("float32")
LABELS = {"kind": KIND, "size": SIZE}
LIKELIHOODS = {"kind": Categorical(), "size": Normal(scale=0.5)}
A, B = RNG.uniform(0.0, 2.0, size=(2, N)).astype("float32")


def network(outputs, layer=bdl.layers.DenseReparameterization, **kwargs):
    """Two outputs, in a dict or a list."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    kind, size = layer(3, name="kind", **kwargs)(inputs), layer(1, name="size", **kwargs)(inputs)
    return keras.Model(inputs, {"kind": kind, "size": size} if outputs == "dict" else [kind, size])


def array(values):
    return keras.ops.convert_to_numpy(values)


def losses_of(outputs):
    """NLL of each example in each output, from scipy."""
    kind, size = (array(value) for value in (outputs.values() if isinstance(outputs, dict) else outputs))
    of_kind = -special.log_softmax(kind, axis=-1)[np.arange(N), KIND]
    return of_kind, -stats.norm.logpdf(SIZE, size, 0.5)[:, 0]


FORMS = {
    "dicts": ("dict", LIKELIHOODS, LABELS),
    "lists": ("list", list(LIKELIHOODS.values()), list(LABELS.values())),
    "dict of likelihoods": ("list", LIKELIHOODS, list(LABELS.values())),
    "dict of labels": ("list", list(LIKELIHOODS.values()), LABELS),
    "other order": ("dict", dict(reversed(LIKELIHOODS.items())), dict(reversed(LABELS.items()))),
}


@pytest.mark.core
@pytest.mark.parametrize(("outputs", "likelihood", "y"), FORMS.values(), ids=FORMS)
def test_nll_of_outputs_add_up_however_they_are_given(outputs, likelihood, y):
    model = network(outputs)
    found = model(X)
    assert_allclose(array(Heads(likelihood, model).nll(y, found)), sum(losses_of(found)), rtol=1e-5)


@pytest.mark.core
def test_fit_takes_weights_and_metrics_by_output_and_says_the_weighted_nll():
    model = bdl.VariationalModel(network("list"), LIKELIHOODS, kl_weight=1.0)
    model.compile(
        "adam", loss_weights={"size": 0.5, "kind": 2.0}, metrics={"size": ["mse"]}, weighted_metrics=[["accuracy"], []]
    )
    assert "size_mse" in model.fit(X, LABELS, sample_weight={"kind": A, "size": B}, verbose=0, batch_size=N).history
    with bdl.mean_weights(model):
        of_kind, of_size = losses_of(model.network(X))
        logs = model.evaluate(X, [KIND, SIZE], sample_weight=[A, B], verbose=0, return_dict=True, batch_size=5)
        logits, size = (array(each) for each in model.network(X))
    assert_allclose(logs["nll"], np.mean(2.0 * A * of_kind + 0.5 * B * of_size), rtol=1e-5)
    assert_allclose(logs["size_mse"], np.mean((size - SIZE) ** 2), rtol=1e-5)
    assert_allclose(logs["kind_accuracy"], np.sum(A * (logits.argmax(-1) == KIND)) / np.sum(A), rtol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("sample_weight", [A, {"kind": A, "size": B}, {"kind": A, "size": None}], ids=str)
def test_weights_of_the_multi_sample_objective_are_exponents_within_an_example(sample_weight):
    model = network("dict", seed=2)
    draws = [model(X, training=True) for _ in range(3)]
    heads = Heads(LIKELIHOODS, model)
    weights = heads.weights(sample_weight, draws[0])
    nll = keras.ops.stack([heads.nll(LABELS, draw, weights) for draw in draws])
    parts = bdl.elbo.elbo_parts(nll, 0.0, N, sample_weight=weights.of_examples, objective="multi_sample")
    of_kind, of_size = np.moveaxis([losses_of(draw) for draw in draws], 1, 0)
    a, b = (A, A) if sample_weight is A else (A, B if sample_weight["size"] is B else np.ones(N))
    example = (a + b) / 2
    mixture = special.logsumexp(-(a * of_kind + b * of_size) / example, axis=0) - np.log(3)
    assert_allclose(float(array(parts.loss)), np.mean(-example * mixture), rtol=1e-4)
    assert_allclose(float(array(parts.nll)), np.mean(a * of_kind + b * of_size), rtol=1e-4)


@pytest.mark.core
def test_one_weight_for_all_outputs_is_the_examples_own():
    weights = weights_of({"kind": A, "size": A}, ["kind", "size"])
    assert_allclose(array(weights.of_examples), A, rtol=1e-6)
    assert_allclose(array(weights.within["size"]), np.ones(N), rtol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "kind"), [(LIKELIHOODS, dict), (list(LIKELIHOODS.values()), list), (Normal(scale=1.0), list)]
)
def test_predictions_have_the_structure_of_the_likelihoods(likelihood, kind):
    found = bdl.predict_distribution(network("list"), X, likelihood, num_samples=2)
    assert type(found) is kind
    first, second = found.values() if kind is dict else found
    assert first.mean.shape == (N, 3)
    assert second.mean.shape == (N,)
    assert type(bdl.predict_distribution(network("dict"), X, Normal(scale=1.0), num_samples=2)) is dict


def test_an_output_without_likelihood_needs_no_labels():
    for outputs, likelihood, y in (
        ("dict", {"kind": Categorical()}, {"kind": KIND}),
        ("dict", {"kind": Categorical(), "size": None}, LABELS),
        ("list", [Categorical(), None], [KIND]),
    ):
        heads = Heads(likelihood, model := network(outputs))
        found = model(X)
        assert_allclose(array(heads.nll(y, found)), losses_of(found)[0], rtol=1e-5)


@pytest.mark.core
def test_a_model_with_a_list_of_likelihoods_is_saved_with_their_scales(tmp_path):
    model = bdl.VariationalModel(network("list"), [Categorical(), Normal()])
    model.compile("adam", loss_weights=[1.0, 2.0])
    model.optimizer.build(model.trainable_variables)
    model.likelihood[1].raw_scale.assign(0.3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    one, other = (each.predict_distribution(X, 4, seed=1) for each in (model, loaded))
    assert_allclose(one[0].mean, other[0].mean, rtol=1e-5)
    assert_allclose(one[1].std, other[1].std, rtol=1e-5)
    assert loaded.get_compile_config()["loss_weights"] == [1.0, 2.0]


@pytest.mark.core
def test_the_elbo_of_several_outputs_counts_the_kl_once():
    model = network("dict", kernel_prior="normal")
    outputs = model(X)
    parts = bdl.ELBO(LIKELIHOODS, 20, model=model).parts(LABELS, outputs, {"kind": A, "size": B})
    of_kind, of_size = losses_of(outputs)
    expected = np.mean(A * of_kind + B * of_size) + array(bdl.kl_divergence(model)) / 20
    assert_allclose(array(parts.loss), expected, rtol=1e-5)


def test_a_compiled_elbo_that_keras_would_call_for_each_output_is_refused():
    model = network("dict")
    for loss in (bdl.ELBO(LIKELIHOODS, N, model=model), bdl.ELBO(Normal(scale=1.0), N, model=model)):
        model.compile("adam", loss=loss)
        with pytest.raises(ValueError, match=r"`loss` must not be ELBO for a model of 2 outputs.*VariationalModel"):
            model.train_on_batch(X, {"kind": SIZE, "size": SIZE})


class Subclassed(keras.Model):
    """Its outputs, a list, have no names."""

    def __init__(self):
        super().__init__()
        self.kind, self.size = bdl.layers.DenseReparameterization(3), bdl.layers.DenseReparameterization(1)

    def call(self, x):
        return [self.kind(x), self.size(x)]


def fitted(likelihood=LIKELIHOODS, y=LABELS, net=None, loss_weights=None, sample_weight=None):
    model = bdl.VariationalModel(net or network("dict"), likelihood)
    model.compile("adam", loss_weights=loss_weights)
    model.fit(X, y, sample_weight=sample_weight, verbose=0)


SWAPPED = {"knd": KIND, "size": SIZE}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"likelihood": {"knd": Categorical()}}, r"`likelihood` .* \['kind', 'size'\], not 'knd'\. Use these names"),
        ({"likelihood": [Categorical(), Normal()]}, r"`likelihood` must be a dict .*'kind': .*, not a list"),
        ({"likelihood": {"kind": "softmax"}}, r"`likelihood` must be a bdl.*Likelihood.* not \{'kind': 'softmax'\}"),
        ({"likelihood": {"kind": None}}, r"`likelihood` must be a bdl"),
        ({"net": "list", "likelihood": [Normal()]}, r"`likelihood` must have an entry for each .* not 1 entries"),
        ({"net": Subclassed(), "y": [KIND, SIZE]}, r"`likelihood` .*'output_0'.* not 'kind'\..* or a list"),
        ({"y": {"kind": KIND}}, r"`y` must have an entry for output 'size', not only \['kind'\]\. Add"),
        ({"y": SWAPPED}, r"`y` must be by the names .* not 'knd'"),
        ({"y": KIND}, r"`y` must be a dict .* not a ndarray"),
        ({"y": [KIND, SIZE]}, r"`y` must be a dict .* not a list, whose order says nothing"),
        ({"y": {"kind": KIND + 7, "size": SIZE}}, r"Output 'kind': `y` must hold a class index"),
        ({"sample_weight": {"knd": A, "size": B}}, r"`sample_weight` must be by the names .* not 'knd'"),
        ({"sample_weight": {"size": B}}, r"`sample_weight` must have an entry for output 'kind'"),
        ({"sample_weight": np.ones((N, 2))}, r"`sample_weight` must be a dict by the outputs \['kind', 'size'\]"),
        ({"sample_weight": {"kind": np.ones((N, 2)), "size": B}}, r"Output 'kind': `sample_weight` .* not shape"),
        ({"loss_weights": {"knd": 1.0, "size": 1.0}}, r"`loss_weights` must be by the names .* not 'knd'"),
        ({"loss_weights": {"size": 1.0}}, r"`loss_weights` must have an entry for output 'kind'.*1\.0"),
        ({"loss_weights": [1.0, 1.0]}, r"`loss_weights` must be a dict .* not a list"),
        ({"loss_weights": {"kind": -1.0, "size": 1.0}}, r"`loss_weights` .* not -1.0 for output 'kind'"),
    ],
)
def test_what_does_not_match_the_outputs_is_named(arguments, message):
    if arguments.get("net") == "list":
        arguments = {**arguments, "net": network("list"), "y": [KIND, SIZE]}
    with pytest.raises(ValueError, match=message):
        fitted(**arguments)


def test_a_network_of_one_output_takes_one_likelihood():
    single = keras.Sequential([keras.Input((4,)), bdl.layers.DenseReparameterization(3)])
    with pytest.raises(ValueError, match=r"`likelihood` must be one, .* not a dict of \['kind'\]"):
        bdl.VariationalModel(single, {"kind": Categorical()})
    model = bdl.VariationalModel(single, [Categorical()])
    assert model.predict_distribution(X, 2).probabilities.shape == (N, 3)


def test_the_recipes_keep_the_names_of_outputs():
    model = bdl.recipes.instead_of_ensemble(network("list", keras.layers.Dense), LIKELIHOODS)
    assert list(Heads(LIKELIHOODS, model).flat(["first", "second"])) == ["kind", "size"]
