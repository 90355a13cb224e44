"""Two processes of Torch's DistributedDataParallel: the KL counts once, noise is their own, and N is that of all."""

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
import json, sys, warnings
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

# A step on the halves of a batch, and one on the whole, with the noise switched off.
rng = np.random.default_rng(0)
data, labels = torch.as_tensor(rng.normal(size=(8, 4)).astype("float32")), torch.as_tensor(rng.integers(0, 3, 8))
half = slice(4 * rank, 4 * rank + 4)
gradients = []
with bdl.mean_weights(model):
    for called, rows in ((parallel, half), (model, slice(None))):
        parallel.zero_grad()
        model.compute_loss(data[rows], labels[rows], called(data[rows], training=True)).backward()
        found = [weight.grad.numpy().ravel().tolist() for weight in network.parameters() if weight.requires_grad]
        gradients.append(found)

told = []
unknown = bdl.VariationalModel(keras.models.clone_model(network), bdl.likelihoods.Categorical(), kl_weight=1.0)
unknown.compile("sgd")
try:
    unknown.fit(data.numpy()[half], labels.numpy()[half], verbose=0)
except ValueError as error:
    told.append(str(error))
given = bdl.VariationalModel(keras.models.clone_model(network), bdl.likelihoods.Categorical(), 8, kl_weight=1.0)
given.compile("sgd")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    given.fit(data.numpy()[half], labels.numpy()[half], verbose=0)
told.extend(str(each.message) for each in caught if "num_examples" in str(each.message))
weights = [weight.detach().numpy().tolist() for weight in network.parameters() if weight.requires_grad]
torch.distributed.destroy_process_group()
found = {"steps": steps, "seeded": seeded, "unseeded": unseeded, "weights": weights}
print(json.dumps({**found, "gradients": gradients, "told": told}))
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


def test_the_gradient_of_halves_of_a_batch_is_that_of_the_whole(ranks):
    """Without noise. The KL would count twice, or half, if processes had not the same N."""
    for rank in ranks:
        halves, whole = rank["gradients"]
        for ours, theirs in zip(halves, whole, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def test_the_number_of_examples_in_all_processes_must_be_given(ranks):
    for rank in ranks:
        (told,) = rank["told"]
        assert "`num_examples` must be given where 2 processes train together" in told
