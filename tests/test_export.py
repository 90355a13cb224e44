"""An exported prediction gives the numbers of `predict_distribution`, without bdl and for batches of any size."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from networks import made, outputs
from numpy.testing import assert_allclose
from standard_errors import assert_within_standard_errors

import bdl
from bdl.convert import to_mc_dropout, to_variational
from bdl.export import CLASSIFICATION_OUTPUTS, REGRESSION_OUTPUTS, export_distribution

BACKEND = keras.backend.backend()
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums, compiled in another order

on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="needs TensorFlow's own SavedModel")
without_torch = pytest.mark.skipif(BACKEND == "torch", reason="Torch's generator cannot be exported")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jax2tf's own


def loaded(folder: Any) -> Callable[[Any], Any]:
    """The function that a SavedModel serves, as NumPy arrays; it keeps the variables alive, which `serve` does not."""
    import tensorflow as tf

    artifact = tf.saved_model.load(str(folder))
    return lambda x: tf.nest.map_structure(np.asarray, artifact.serve(x))


def assert_predicts(found: dict[str, Any], prediction: Any, names: tuple[str, ...], prefix: str = ""):
    for name in names:
        expected = getattr(prediction, name)
        assert found[prefix + name].shape == expected.shape
        assert_allclose(found[prefix + name], expected, **ROUNDING)


@pytest.fixture(scope="module")
def trained() -> Any:
    """A trained classifier, inputs, and what it predicts for them with 8 samples and seed 3."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    dense = bdl.layers.DenseFlipout(5, activation="relu")
    network = keras.Sequential([keras.Input((4,)), dense, bdl.layers.DenseReparameterization(3)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=1.0)
    model.compile("adam")
    model.fit(x, np.arange(20) % 3, verbose=0)
    prediction = model.predict_distribution(x, num_samples=8, seed=3)
    assert prediction.epistemic.max() > 0.003  # a thousand times the rounding: noise is part of the comparisons below
    return model, x, prediction


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any, trained: Any) -> Any:
    """Its folder."""
    folder = tmp_path_factory.mktemp("exported") / "saved"
    trained[0].export(folder, num_samples=8, seed=3, verbose=False)
    return folder


@pytest.mark.core
@without_torch
def test_it_equals_the_prediction_of_its_seed_for_batches_of_any_size(saved: Any, trained: Any):
    _, x, prediction = trained
    serve = loaded(saved)
    assert set(serve(x)) == set(CLASSIFICATION_OUTPUTS)
    assert_predicts(serve(x), prediction, CLASSIFICATION_OUTPUTS)
    assert_allclose(serve(x[:3])["probabilities"], prediction.probabilities[:3], **ROUNDING)


@on_tensorflow
def test_a_process_without_bdl_serves_it(tmp_path: Any, saved: Any, trained: Any):
    _, x, prediction = trained
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy, tensorflow\n"
        "served = tensorflow.saved_model.load(sys.argv[1])\n"
        "numpy.save('p.npy', served.serve(numpy.load('x.npy'))['probabilities'])\n"
        "assert 'bdl' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(saved)], check=True, cwd=tmp_path)
    assert_allclose(np.load(tmp_path / "p.npy"), prediction.probabilities, **ROUNDING)


@on_tensorflow
def test_a_loaded_model_of_a_subclassed_network(tmp_path: Any):
    """Regression, with a learned scale."""
    network, x = made("subclassed")
    model = bdl.VariationalModel(to_variational(network, layers="last"), bdl.likelihoods.Normal(), num_examples=4)
    model.likelihood.raw_scale.assign(0.2)
    model(x)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    model.export(tmp_path / "saved", num_samples=8, verbose=False)
    prediction = model.predict_distribution(x, num_samples=8, seed=0)
    assert_predicts(loaded(tmp_path / "saved")(x), prediction, REGRESSION_OUTPUTS)


@on_tensorflow
def test_several_outputs_have_flat_names(tmp_path: Any):
    network, x = made("several inputs and outputs")
    dropout = to_mc_dropout(network)
    likelihood = {"a": bdl.likelihoods.Categorical(), "b": bdl.likelihoods.StudentT(scale=0.5)}
    export_distribution(dropout, likelihood, tmp_path / "saved", num_samples=8, consistent=True, verbose=False)
    layer = keras.layers.TFSMLayer(str(tmp_path / "saved"), call_endpoint="serve")
    found = {name: np.asarray(value) for name, value in layer(x).items()}
    prediction = bdl.predict_distribution(dropout, x, likelihood, num_samples=8, consistent=True, seed=0)
    assert len(found) == 8
    assert_predicts(found, prediction["a"], CLASSIFICATION_OUTPUTS, "a_")
    assert_predicts(found, prediction["b"], REGRESSION_OUTPUTS, "b_")


@on_tensorflow
def test_an_ensemble_of_single_labels(tmp_path: Any):
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    networks = [keras.Sequential([keras.Input((4,)), bdl.layers.DenseReparameterization(1)]) for _ in range(2)]
    likelihood = bdl.likelihoods.Bernoulli()
    members = [bdl.VariationalModel(network, likelihood, num_examples=6) for network in networks]
    export_distribution(members, likelihood, tmp_path / "saved", num_samples=6, seed=1, verbose=False)
    prediction = bdl.predict_distribution(members, x, likelihood, num_samples=6, seed=1)
    assert_predicts(loaded(tmp_path / "saved")(x), prediction, CLASSIFICATION_OUTPUTS)


@pytest.mark.core
@without_torch
def test_without_a_seed_each_call_draws_afresh(tmp_path: Any):
    """The means of calls scatter around that of the weights' distribution as samples of this number do."""
    network = keras.Sequential([keras.Input((1,)), bdl.layers.DenseReparameterization(1, kernel_initializer="zeros")])
    (layer,) = network.layers
    (weight,) = layer.sampled_weights.values()
    scale = float(keras.ops.convert_to_numpy(weight.posterior.scale(weight.variables))[0, 0])
    export_distribution(
        network, bdl.likelihoods.Normal(scale=1.0), tmp_path / "saved", num_samples=50, seed=None, verbose=False
    )
    serve = loaded(tmp_path / "saved")
    means = np.array([serve(np.ones((1, 1), "float32"))["mean"][0] for _ in range(40)])
    assert len(set(means.tolist())) == 40
    assert_within_standard_errors(means.mean(), 0.0, scale / np.sqrt(50 * 40))
    assert_within_standard_errors((means**2).mean(), scale**2 / 50, scale**2 / 50 * np.sqrt(2 / 40))


@pytest.mark.core
@without_torch
def test_a_loaded_conversion_exports_raw_outputs_of_one_draw(tmp_path: Any):
    network, x = made("transformer")  # its inputs are integers
    to_mc_dropout(to_variational(network, layers="last")).save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    model.export(tmp_path / "noisy", verbose=False)
    serve = loaded(tmp_path / "noisy")
    assert np.abs(serve(x) - serve(x)).max() > 1e-3
    with bdl.mean_weights(model):
        model.export(tmp_path / "still", verbose=False)
        assert_allclose(loaded(tmp_path / "still")(x[:3]), outputs(model, x[:3]), **ROUNDING)


@on_tensorflow
def test_a_plain_model_of_our_layers_exports_raw_outputs(tmp_path: Any):
    network = keras.Sequential([keras.Input((2,)), bdl.layers.DenseReparameterization(1)])
    network.export(tmp_path / "saved", verbose=False)
    serve = loaded(tmp_path / "saved")
    assert len({float(serve(np.ones((1, 2), "float32"))[0, 0]) for _ in range(3)}) == 3


@on_tensorflow
@pytest.mark.filterwarnings("ignore")  # the exporters' own, of many kinds
def test_it_exports_to_onnx(tmp_path: Any, trained: Any):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    model, x, prediction = trained
    model.export(tmp_path / "model.onnx", format="onnx", num_samples=8, seed=3, verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    found = session.run(None, {session.get_inputs()[0].name: x})
    found = {output.name: value for output, value in zip(session.get_outputs(), found, strict=True)}
    assert_predicts(found, prediction, CLASSIFICATION_OUTPUTS)


@on_tensorflow
@pytest.mark.filterwarnings("ignore")  # the exporters' own, of many kinds
def test_what_onnx_lacks_leaves_no_broken_file(tmp_path: Any):
    pytest.importorskip("tf2onnx")
    network = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(keras.ops.erfinv)])
    with pytest.raises(ValueError, match="`format` must be another than 'onnx'"):
        export_distribution(network, bdl.likelihoods.Normal(), tmp_path / "model.onnx", "onnx", verbose=False)
    assert not (tmp_path / "model.onnx").exists()


@on_tensorflow
@pytest.mark.filterwarnings("ignore")  # the exporters' own, of many kinds
def test_it_exports_to_litert(tmp_path: Any, trained: Any):
    import tensorflow as tf

    model, x, prediction = trained
    model.export(tmp_path / "model.tflite", format="litert", num_samples=8, seed=3, verbose=False)
    run = tf.lite.Interpreter(model_path=str(tmp_path / "model.tflite")).get_signature_runner("serving_default")
    (name,) = run.get_input_details()
    assert_predicts(run(**{name: x}), prediction, CLASSIFICATION_OUTPUTS)


@pytest.mark.core
def test_what_cannot_be_exported_is_named(tmp_path: Any):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    likelihood = bdl.likelihoods.Categorical()
    with pytest.raises(ValueError, match=r"`format` must be .*, not 'openvino'.*KERAS_BACKEND=tensorflow"):
        export_distribution(network, likelihood, tmp_path / "model.xml", format="openvino")
    with pytest.raises(ValueError, match=r"`format` must be 'tf_saved_model'.*export_distribution"):
        to_mc_dropout(network, rate=0.1, before="all").export(tmp_path / "model.onnx", format="onnx")


@pytest.mark.core
@pytest.mark.skipif(BACKEND != "torch", reason="the others export")
def test_torch_sends_to_another_backend(tmp_path: Any):
    network, _ = made("subclassed")
    with pytest.raises(ValueError, match=r"on torch none.*\.keras file.*KERAS_BACKEND=tensorflow"):
        export_distribution(network, bdl.likelihoods.Normal(), tmp_path / "saved")


@on_tensorflow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": 0.5}, "`seed` must be an integer"),
        ({"seed": None, "format": "onnx"}, "`seed` must be an integer, not None"),
        ({"num_samples": 0}, "`num_samples` must be a positive integer"),
        ({"likelihood": "normal"}, "`likelihood` must be"),
        ({"model": keras.Sequential([keras.layers.Dense(1)])}, "`model` must be a built"),
        ({"model": []}, "not an empty list"),
        ({"format": "onyx"}, "`format` must be"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path: Any, wrong: dict[str, Any], message: str):
    right = {
        "model": keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]),
        "likelihood": bdl.likelihoods.Normal(),
    }
    with pytest.raises(ValueError, match=message):
        export_distribution(**{**right, "filepath": tmp_path / "saved", **wrong})


@on_tensorflow
def test_inputs_that_nothing_tells_must_be_given(tmp_path: Any):
    class Silent(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.head = keras.layers.Dense(2)
            self.head.build((None, 4))
            self.built = True

        def call(self, inputs: Any) -> Any:
            return self.head(inputs)

    likelihood = bdl.likelihoods.Categorical()
    with pytest.raises(ValueError, match="`input_signature` must be given for the Silent"):
        export_distribution(Silent(), likelihood, tmp_path / "saved")
    settings = {"input_signature": [keras.InputSpec(shape=(None, 4), dtype="float32")], "verbose": False}
    export_distribution(Silent(), likelihood, tmp_path / "saved", num_samples=2, **settings)
    assert loaded(tmp_path / "saved")(np.ones((3, 4), "float32"))["probabilities"].shape == (3, 2)
