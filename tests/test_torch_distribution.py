"""Two processes of Torch's DistributedDataParallel: the KL counts once, noise is their own, and N is that of all."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from standard_errors import assert_uncorrelated

import bdl

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
sys.path.append(sys.argv[2])
import torch_workers

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

# The loop of the documentation, with the noise switched off; and noise of each row under its strategy.
keras.utils.set_random_seed(1)
looped = torch_workers.build(4, 3, num_examples=8)
with bdl.mean_weights(looped):
    optimizer = torch.optim.SGD(looped.parameters(), 0.1)
    torch_workers.train(looped, optimizer, data.numpy(), labels.numpy(), epochs=2, batch_size=8)
if rank == 0:
    looped.save(sys.argv[3])
loop = {
    "weights": [weight.numpy().ravel().tolist() for weight in looped.trainable_weights],
    "temperature": looped.temperature,
    "num_examples": looped.num_examples,
    "prediction": looped.predict_distribution(data.numpy(), num_samples=4, seed=1).probabilities.tolist(),
}
noisy = keras.Sequential([keras.Input((4,)), bdl.layers.DenseLocalReparameterization(1, seed=1)])
noise = torch.nn.parallel.DistributedDataParallel(noisy)(torch.ones((4000, 4)), training=True).detach().numpy()
torch.distributed.destroy_process_group()
found = {"loop": loop, "noise": noise.ravel().tolist()}
found |= {"steps": steps, "seeded": seeded, "unseeded": unseeded, "weights": weights}
print(json.dumps({**found, "gradients": gradients, "told": told}))
"""


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("saved") / "model.keras"


@pytest.fixture(scope="module")
def ranks(file):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(2):
        command = [sys.executable, "-c", PROGRAM, str(rank), str(EXAMPLES), str(file)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
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


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)


def test_steps_of_the_loop_in_two_processes_equal_those_of_one(ranks, monkeypatch):
    """Without noise: the NLL is that of the whole batch, the KL counts once, N is that of all, and T is 1."""
    import torch

    monkeypatch.syspath_prepend(EXAMPLES)
    from torch_workers import build

    keras.utils.set_random_seed(1)
    model, (x, y) = build(4, 3, num_examples=8), (torch.as_tensor(each) for each in data())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with bdl.mean_weights(model):
        for _ in range(2):
            optimizer.zero_grad()
            model.compute_loss(x, y, model(x, training=True)).backward()
            optimizer.step()
    expected = [weight.numpy().ravel() for weight in model.trainable_weights]
    for rank in ranks:
        assert (rank["loop"]["temperature"], rank["loop"]["num_examples"]) == (1.0, 8)
        for ours, theirs in zip(rank["loop"]["weights"], expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_processes_draw_independent_noise(ranks):
    one, two = (np.array(rank["noise"]) for rank in ranks)
    assert_uncorrelated(one, two)


def test_the_file_of_a_process_predicts_the_same_elsewhere(ranks, file):
    prediction = keras.saving.load_model(file).predict_distribution(data()[0], num_samples=4, seed=1)
    np.testing.assert_array_equal(
        prediction.probabilities.astype("float32"), np.float32(ranks[0]["loop"]["prediction"])
    )
