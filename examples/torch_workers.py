"""Several processes train one model on Torch
===========================================

`KERAS_BACKEND=torch torchrun --nproc-per-node=2 examples/torch_workers.py` trains one model in two processes.

Each process evaluates its share of every batch, and `DistributedDataParallel` averages the gradients. The loss of a
share is its mean NLL plus KL / N, so that the average is that of the whole batch, with the KL in it once.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

import bdl


def build(num_inputs: int, num_classes: int, num_examples: int) -> bdl.VariationalModel:
    """A classifier. N counts the examples of all processes together, and T is 1 from the start."""
    layers = [bdl.layers.DenseFlipout(64, activation="relu"), bdl.layers.DenseFlipout(num_classes)]
    network = keras.Sequential([keras.Input((num_inputs,)), *layers])
    return bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=num_examples, kl_weight=1.0)


def train(model: bdl.VariationalModel, optimizer: Any, x: Any, y: Any, epochs: int, batch_size: int) -> None:
    """Trains on all data, of which every process has a copy; the process group is there."""
    import torch

    parallel = torch.nn.parallel.DistributedDataParallel(model)  # begins with the weights of process 0
    process, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if batch_size % processes:  # gradients are averaged, as if all shares were equal
        raise ValueError(f"`batch_size` must be a multiple of the {processes} processes, not {batch_size}.")
    for epoch in range(epochs):
        model.reset_metrics()
        order = np.random.default_rng(epoch).permutation(len(x))  # the same in all processes
        for start in range(0, len(x) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size][process::processes]
            inputs, labels = torch.as_tensor(x[rows]), torch.as_tensor(y[rows])
            optimizer.zero_grad()
            model.compute_loss(inputs, labels, parallel(inputs, training=True)).backward()
            optimizer.step()


def main(path: str = "digits.keras") -> None:
    """Trains on 1,200 digits; process 0 saves the model, and evaluates it on the others."""
    import torch

    torch.distributed.init_process_group("gloo")
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    model = build(64, 10, num_examples=1200)
    train(model, torch.optim.Adam(model.parameters(), 3e-3), x[:1200], y[:1200], epochs=20, batch_size=80)
    if torch.distributed.get_rank() == 0:
        model.save(path)
        prediction = model.predict_distribution(x[1200:], seed=0)
        print(f"accuracy {np.mean(prediction.probabilities.argmax(-1) == y[1200:]):.3f} on 597 other digits")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
