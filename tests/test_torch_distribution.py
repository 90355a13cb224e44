"""Two processes of Torch's DistributedDataParallel: noise of their own, and the same seeded prediction."""

import json
import os
import socket
import subprocess
import sys

import keras
import pytest

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="distributed training of Torch"),
]

PROGRAM = """
import json, sys
import keras
import numpy as np
import torch
import bdl
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
network = keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3)])
model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=16, kl_weight=1.0)
model.compile("sgd")
parallel = torch.nn.parallel.DistributedDataParallel(model)  # copies weights and seeds from the first process
x = torch.ones((2, 4))
steps = [parallel(x, training=True).detach().numpy().tolist() for _ in range(2)]
seeded = model.predict_distribution(x.numpy(), num_samples=4, seed=1).probabilities.tolist()
unseeded = model.predict_distribution(x.numpy(), num_samples=4).probabilities.tolist()
weights = [weight.detach().numpy().tolist() for weight in network.parameters() if weight.requires_grad]
torch.distributed.destroy_process_group()
print(json.dumps({"steps": steps, "seeded": seeded, "unseeded": unseeded, "weights": weights}))
"""


@pytest.fixture(scope="module")
def ranks():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    return [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes]


def test_equal_weights_have_noise_of_their_own_in_every_process_and_step(ranks):
    one, two = ranks
    assert one["weights"] == two["weights"]
    draws = [str(step) for rank in ranks for step in rank["steps"]]
    assert len(set(draws)) == 4


def test_a_seeded_prediction_is_the_same_in_every_process_and_another_is_not(ranks):
    one, two = ranks
    assert one["seeded"] == two["seeded"]
    assert one["unseeded"] != two["unseeded"]
