"""Ray, started on this machine: it scores and trains as one process does, and a worker that dies loses nothing."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray is not installed: pip install "keras-bdl[ray]"'
)

# In a process of its own, whose functions Ray sends to its workers by value.
PROGRAM = """
import json, os, sys
from pathlib import Path

import keras
import numpy as np
import ray

import bdl
import ensemble_members

folder, size = Path(sys.argv[1]), int(sys.argv[2])
marker = folder / "a worker has died"
os.environ["BDL_TEST_MARKER"] = str(folder / "a member has died")
likelihood, settings = bdl.likelihoods.Categorical(), {"num_samples": 4, "batch_size": 256, "seed": 1}


def features(batch):
    row = batch["id"]
    x = np.stack([row * factor % 1009 / 1009 for factor in (7919, 104729, 1299709, 15485863)], axis=-1)
    return {"row": row, "x": x.astype("float32")}


def dies_once(batch):
    if size // 2 in batch["row"] and not marker.exists():
        marker.touch()
        os._exit(1)
    return scorer(batch)


def is_equal(score):
    # Blocks of Ray begin anywhere, and end in any order.
    table = ray.data.range(size, override_num_blocks=7).map_batches(features)
    found = table.map_batches(score, batch_size=3_000).to_pandas().sort_values("row")
    return {name: bool(np.array_equal(found[name].to_numpy(), column)) for name, column in whole.items()}


def members(name, make, **executor):
    x, y = ensemble_members.X, ensemble_members.Y
    found = bdl.ensembles.fit(make, 5, folder / name, x, y, epochs=1, batch_size=24, **executor)
    return [weight for member in found for weight in member.get_weights()]


keras.utils.set_random_seed(0)
ensemble_members.network().save(folder / "network.keras")
network = keras.saving.load_model(folder / "network.keras")
x = features({"id": np.arange(size)})["x"]
whole = bdl.prediction.columns_of(bdl.predict_distribution(network, x, likelihood, **settings))
scorer = bdl.scoring.Scorer(folder / "network.keras", "x", likelihood, **settings)

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=256 * 2**20)
ray.data.DataContext.get_current().enable_progress_bars = False
found = {"scored": is_equal(scorer), "after a death": is_equal(dies_once), "died": marker.exists()}
if len(sys.argv) == 3:
    by_ray = members("ray", ensemble_members.whose_worker_dies_once, executor=bdl.ensembles.RayExecutor())
    looped = members("loop", ensemble_members.variational)
    found["members"] = all(np.array_equal(*pair) for pair in zip(by_ray, looped, strict=True))
    found["member died"] = Path(os.environ["BDL_TEST_MARKER"]).exists()
ray.shutdown()
print(json.dumps(found))
"""


def run(folder, *arguments):
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "HOME": str(folder),  # Ray writes a file there
        "KERAS_BACKEND": keras.backend.backend(),
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Ray's workers give way to all else by default
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        env={**os.environ, **own},
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run(tmp_path_factory.mktemp("ray"), "20011")


COLUMNS = {"class", "p_0", "p_1", "p_2", "total_uncertainty", "aleatoric", "epistemic"}


def test_scores_are_those_of_one_process(found):
    assert found["scored"] == dict.fromkeys(COLUMNS, True)


def test_a_worker_that_dies_loses_nothing(found):
    assert found["died"]
    assert found["after a death"] == dict.fromkeys(COLUMNS, True)


def test_five_members_are_those_of_a_loop_though_a_worker_dies(found):
    assert found["member died"]
    assert found["members"]


@pytest.mark.slow
def test_a_million_scores_are_those_of_one_process(tmp_path):
    found = run(tmp_path, "1000003", "scores only")
    assert found == {"scored": dict.fromkeys(COLUMNS, True), "died": True, "after a death": found["scored"]}
