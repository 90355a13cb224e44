"""Run as a program where TensorFlow is not installed: import, fit, predict, save and load on another backend."""

import importlib.util
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

import bdl

FOREIGN = ("tensorflow", "tensorflow_probability", "tf_keras")


def main():
    installed = [name for name in FOREIGN if importlib.util.find_spec(name)]
    if installed:
        sys.exit(f"This is to be run where {installed} are not installed.")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseRank1(16, "relu"), bdl.layers.DenseRank1(2)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical())
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(x, y, epochs=20, verbose=0)
    prediction = model.predict_distribution(x, num_samples=16, seed=0)
    accuracy = float(np.mean(np.argmax(prediction.probabilities, -1) == y))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        again = keras.saving.load_model(path).predict_distribution(x, num_samples=16, seed=0)
    np.testing.assert_allclose(again.probabilities, prediction.probabilities, rtol=1e-5)
    assert accuracy > 0.9, accuracy
    assert not [name for name in FOREIGN if name in sys.modules]
    print(f"{keras.backend.backend()} alone: accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
