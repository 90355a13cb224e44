"""Several processes train one model on TensorFlow
================================================

`python examples/tensorflow_workers.py` is one process of several that train a model under
`MultiWorkerMirroredStrategy`; TF_CONFIG in its environment names them all. Without it the process is alone.

Keras' own `fit` does not run under this strategy. `train_step` does: it adds up the gradients of the workers' shares of
a batch, with the KL in them once.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

import bdl


def build(num_inputs: int, num_classes: int, num_examples: int, optimizer: Any) -> bdl.VariationalModel:
    """A classifier, made in the scope of the strategy. N counts the examples of all workers, and T is 1."""
    layers = [bdl.layers.DenseFlipout(64, activation="relu"), bdl.layers.DenseFlipout(num_classes)]
    network = keras.Sequential([keras.Input((num_inputs,)), *layers])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=num_examples, kl_weight=1.0)
    model.compile(optimizer)
    optimizer.build(model.trainable_variables)
    return model


def train(
    strategy: Any, model: bdl.VariationalModel, x: Any, y: Any, epochs: int, batch_size: int
) -> list[dict[str, Any]]:
    """Trains on all data, of which every worker has a copy; returns the logs of the epochs, those of all workers."""
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=0).batch(batch_size)
    shares = strategy.experimental_distribute_dataset(data)  # of each batch; a share may be smaller than another

    @tf.function
    def step(share: Any) -> None:
        strategy.run(model.train_step, args=(share,))

    logs = []
    for _ in range(epochs):
        model.reset_metrics()
        for share in shares:
            step(share)
        logs.append({name: float(value) for name, value in model.get_metrics_result().items()})
    return logs


def main(path: str = "digits.keras") -> None:
    """Trains on 1,200 digits; worker 0 saves the model, and evaluates it on the others."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else of TensorFlow
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    with strategy.scope():
        model = build(64, 10, num_examples=1200, optimizer=keras.optimizers.Adam(3e-3))
    logs = train(strategy, model, x[:1200], y[:1200], epochs=20, batch_size=64)
    if not strategy.cluster_resolver.task_id:
        model.save(path)
        prediction = model.predict_distribution(x[1200:], seed=0)
        print(f"ELBO {logs[0]['elbo']:.2f} -> {logs[-1]['elbo']:.2f} nats per example")
        print(f"accuracy {np.mean(prediction.probabilities.argmax(-1) == y[1200:]):.3f} on 597 other digits")


if __name__ == "__main__":
    main(*sys.argv[1:])
