"""What the estimators of a latent alignment give and cost: gradients, bounds, time and memory of a training step.

Four parts, on the TensorFlow backend:

- `gradients`: of the training loss (mean NLL + local KL) of a small network with fixed random weights, on one batch.
  `enumerate` is exact. The means of many draws of `reinforce`, with each baseline, must agree with it; the totals of
  their variances (traces of the covariance) say what a control variate is worth.
- `gumbel`: the bias of the same gradient, and of the value of the bound, by temperature. The squared distance of a mean
  of R draws from the exact gradient is its squared bias plus trace(covariance) / R, which is subtracted.
- `bounds`: log-likelihoods under several random weights; marginal minus enumerate must be KL(q || posterior).
- `cost`: time and memory of a training step for 8 to 256 keys, as ratios to soft attention. Times are taken in turn in
  one process, and ratios within a round. Memory is the growth of the resident size over that before the step, each
  setting in a fresh process (Linux).

python benchmarks/latent_attention.py --output benchmarks/results/latent_attention.json
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

app = typer.Typer(add_completion=False)

# Of the small network whose gradients are drawn.
BATCH, QUERIES, KEYS, DIM, TARGET_DIM, CLASSES = 8, 5, 7, 8, 6, 10
NUM_SAMPLES, NUM_DIRECTIONS, NUM_WEIGHTS = 4, 20, 8
TEMPERATURES = (0.1, 0.25, 0.5, 1.0, 2.0)

# Of the network whose steps are measured.
COST_BATCH, COST_QUERIES, COST_UNITS, BLOCK_SIZE = 16, 16, 64, 32
NUM_KEYS = (8, 16, 32, 64, 128, 256)
DECODERS = {"many classes": (64, 500), "wide hidden": (1024, 32)}
"""Hidden units and classes: the outputs are what a decoder needs memory for, or its hidden values are."""
MIN_BURST_SECONDS = 0.1
MEMORY_STEPS = 6
MEBIBYTE = 2.0**20
BESIDE_SOFT = ("marginal", "marginal, blocks", "enumerate", "enumerate, blocks")

Results = dict[str, Any]


def network_of(batch: dict[str, np.ndarray], units: int, classes: int, has_encoder: bool = False, **layer: Any) -> Any:
    """A network with one `LatentAttention` and a decoder of two layers; the target is an input where q sees it."""
    import keras

    import bdl

    needs_target = "inference_network" in layer
    names = ("query", "value", "target")[: 3 if needs_target else 2]
    inputs = {name: keras.Input(batch[name].shape[1:], name=name) for name in names}
    decoder = keras.Sequential(
        [keras.layers.Dense(units, activation="tanh", name="hidden"), keras.layers.Dense(classes, name="outputs")],
        name="decoder",
    )
    attention = bdl.layers.LatentAttention(score_mode="general", decoder=decoder, name="attention", **layer)
    query, value = inputs["query"], inputs["value"]
    if has_encoder:  # as in a model that learns what it attends to: then the values need gradients too
        query = keras.layers.Dense(query.shape[-1], name="query_encoder")(query)
        value = keras.layers.Dense(value.shape[-1], name="value_encoder")(value)
    outputs = attention([query, value], target=inputs["target"]) if needs_target else attention([query, value])
    return keras.Model(inputs, outputs)


def model_of(network: Any, num_examples: int) -> Any:
    """Its model, at T = 1."""
    import bdl

    likelihood = bdl.likelihoods.Mixture(bdl.likelihoods.Categorical())
    return bdl.VariationalModel(network, likelihood, num_examples=num_examples, kl_weight=1.0)


def batch_of(sizes: tuple[int, int, int, int, int], classes: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Random inputs and labels; sizes of batch, queries, keys, dimension and target's dimension."""
    batch, queries, keys, dim, target_dim = sizes
    rng = np.random.default_rng(0)
    shapes = {"query": (batch, queries, dim), "value": (batch, keys, dim), "target": (batch, queries, target_dim)}
    x = {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    return x, rng.integers(classes, size=(batch, queries))


def inputs_of(network: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The part of a batch that a network takes."""
    return {name: batch[name] for name in network.input}


def set_random_weights(network: Any, seed: int) -> None:
    """Weights under which scores, corrections and outputs are of order 1; equal for equal paths."""
    for variable in network.trainable_variables:
        rng = np.random.default_rng([seed, *variable.path.encode()])
        is_score, is_bias = "/score/" in variable.path, len(variable.shape) == 1
        scale = 0.3 if is_bias else (1.0 if is_score else 1.5 * math.sqrt(variable.shape[0])) / variable.shape[0]
        variable.assign(scale * rng.normal(size=variable.shape))


def draws_of(num_draws: int, seed: int = 0, **layer: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses `(num_draws,)`, gradients `(num_draws, weights)`, and which weights are the score's."""
    import keras
    import tensorflow as tf

    batch, y = batch_of((BATCH, QUERIES, KEYS, DIM, TARGET_DIM), CLASSES)
    keras.utils.set_random_seed(seed)
    network = network_of(batch, 16, CLASSES, inference_network="dense", num_samples=NUM_SAMPLES, **layer)
    set_random_weights(network, seed)
    model = model_of(network, BATCH)
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function
    def draw() -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(batch, y, model(batch, training=True))
        gradients = tape.gradient(loss, variables)
        return loss, tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)

    pairs = [draw() for _ in range(num_draws)]
    losses, gradients = (np.array([part.numpy() for part in column], "float64") for column in zip(*pairs, strict=True))
    is_score = [np.full(math.prod(each.shape), "/score/" in each.path) for each in model.trainable_variables]
    return losses, gradients, np.concatenate(is_score)


def gradients(num_draws: int) -> Results:
    """Means and variances of the score function's gradients, against the exact one."""
    _, exact, is_score = draws_of(2, estimator="enumerate")
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(exact.shape[1], NUM_DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    results: Results = {
        "num_draws": num_draws,
        "num_samples": NUM_SAMPLES,
        "num_weights": exact.shape[1],
        "num_score_weights": int(is_score.sum()),
        "exact_norm": float(np.linalg.norm(exact[0])),
        # What the largest |z| of so many independent normals stays below in 95 % of all cases.
        "z_limits": {"directions": _largest_z(NUM_DIRECTIONS), "score": _largest_z(int(is_score.sum()))},
        "variance": {"enumerate": float(np.ptp(exact, axis=0).max() ** 2)},
        "variance_score": {},
        "max_z_directions": {},
        "max_z_score": {},
    }
    for baseline in ("none", "leave_one_out", "soft"):
        _, drawn, _ = draws_of(num_draws, estimator="reinforce", baseline=baseline)
        error = drawn - exact[0]
        results["max_z_directions"][baseline] = _max_z(error @ directions)
        results["max_z_score"][baseline] = _max_z(error[:, is_score])
        results["variance"][baseline] = float(drawn.var(axis=0, ddof=1).sum())
        results["variance_score"][baseline] = float(drawn[:, is_score].var(axis=0, ddof=1).sum())
    for name in ("variance", "variance_score"):
        plain = results[name]["none"]
        results[f"{name}_reduction"] = {each: plain / results[name][each] for each in ("leave_one_out", "soft")}
    exactly, plain, *controlled = (results["variance"][each] for each in ("enumerate", "none", "leave_one_out", "soft"))
    results["is_ordered"] = all(exactly < each < plain for each in controlled)
    return results


def gumbel(num_draws: int) -> Results:
    """Bias and variance of relaxed samples' gradient and bound, by temperature."""
    losses, exact, is_score = draws_of(1, estimator="enumerate")
    table = []
    for temperature in TEMPERATURES:
        values, drawn, _ = draws_of(num_draws, estimator="gumbel", temperature=temperature)
        row: Results = {"temperature": temperature}
        for part, chosen in (("gradient", np.ones_like(is_score)), ("score", is_score)):
            row[part] = _bias(drawn[:, chosen], exact[0][chosen])
        row["bound_bias"] = float(losses[0] - values.mean())  # of the ELBO, in nats per example
        row["bound_standard_error"] = float(values.std(ddof=1) / math.sqrt(num_draws))
        table.append(row)
    return {"num_draws": num_draws, "num_samples": NUM_SAMPLES, "exact_elbo": float(-losses[0]), "table": table}


def _bias(drawn: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Relative bias, free of that of a squared distance; its standard error; and the total variance."""
    number, norm, error = len(drawn), np.linalg.norm(exact), drawn - exact
    mean, covariance = error.mean(axis=0), np.cov(error, rowvar=False)
    trace = float(np.trace(covariance))
    squared = float(mean @ mean) - trace / number
    spread = math.sqrt(4.0 * float(mean @ covariance @ mean) / number + 2.0 * float((covariance**2).sum()) / number**2)
    bias = math.sqrt(max(squared, 0.0))
    return {
        "relative_bias": bias / norm,
        "standard_error": float(spread / (2.0 * max(bias, math.sqrt(spread)) * norm)),
        "monte_carlo_distance": math.sqrt(trace / number) / norm,  # of the mean of an unbiased estimator
        "variance": trace,
    }


def bounds() -> Results:
    """Marginal and ELBO of every example under random weights, and KL(q || posterior) computed apart."""
    from bdl.latents import collect_latents, take_local_kl

    batch, y = batch_of((BATCH, QUERIES, KEYS, DIM, TARGET_DIM), CLASSES)
    table, gaps, divergences = [], [], []
    for seed in range(NUM_WEIGHTS):
        bound = network_of(batch, 16, CLASSES, estimator="enumerate", inference_network="dense")
        exact = network_of(batch, 16, CLASSES, estimator="marginal")
        for network in (bound, exact):
            set_random_weights(network, seed)
        likelihood = model_of(bound, BATCH).likelihood
        arrays = inputs_of(exact, batch)
        marginal = -_array(likelihood.nll(y, exact(arrays, training=True)))
        posterior = _array(likelihood.posterior(y, exact(arrays, training=False)))
        with collect_latents() as reports:
            outputs = bound(batch, training=True)
        elbo = -_array(likelihood.nll(y, outputs)) - _array(take_local_kl(bound))
        q = np.maximum(reports[0].latent.probabilities[:, 0], 1e-30).astype("float64")
        divergences.append((q * (np.log(q) - np.log(np.maximum(posterior, 1e-30)))).sum(axis=(-2, -1)))
        gaps.append(marginal - elbo)
        table.append({"seed": seed, "marginal": float(marginal.mean()), "enumerate": float(elbo.mean())})
    return {
        "examples": NUM_WEIGHTS * BATCH,
        "smallest_gap": float(np.min(gaps)),
        "largest_difference_from_kl": float(np.abs(np.subtract(gaps, divergences)).max()),
        "table": table,
    }


def contestants(num_keys: int) -> dict[str, dict[str, Any]]:
    """Arguments of the layers that are compared; blocks where there are more keys than a block has."""
    q_sees_target = {"estimator": "enumerate", "inference_network": "dense"}
    found = {"soft": {"estimator": "soft"}, "marginal": {"estimator": "marginal"}, "enumerate": q_sees_target}
    if num_keys > BLOCK_SIZE:
        blocks = {"block_size": BLOCK_SIZE}
        found |= {"marginal, blocks": {**found["marginal"], **blocks}, "enumerate, blocks": {**q_sees_target, **blocks}}
    return found


def step_of(decoder: str, num_keys: int, contestant: str) -> Callable[[int], Any]:
    """A compiled training step on the first examples of a fixed batch."""
    import keras

    units, classes = DECODERS[decoder]
    batch, y = batch_of((COST_BATCH, COST_QUERIES, num_keys, COST_UNITS, COST_UNITS), classes)
    keras.utils.set_random_seed(0)
    network = network_of(batch, units, classes, has_encoder=True, **contestants(num_keys)[contestant])
    model = model_of(network, COST_BATCH)
    model.compile("adam")
    x = inputs_of(network, batch)
    return lambda size: model.train_on_batch({name: array[:size] for name, array in x.items()}, y[:size])


def times(decoder: str, num_keys: int, repeats: int) -> dict[str, Results]:
    """Milliseconds a step and ratios to soft attention, formed within a round in which everyone takes a turn."""
    import keras

    steps = {name: step_of(decoder, num_keys, name) for name in contestants(num_keys)}
    counts = {}
    for name, step in steps.items():
        step(COST_BATCH), step(COST_BATCH)
        counts[name] = max(1, math.ceil(MIN_BURST_SECONDS / _seconds(step, 1)))
    rounds: list[dict[str, float]] = []
    for index in range(repeats):
        order = list(steps)[:: -1 if index % 2 else 1]
        rounds.append({name: _seconds(steps[name], counts[name]) for name in order})
    keras.backend.clear_session()
    return {
        name: {
            "milliseconds": _quartiles([1e3 * each[name] for each in rounds]),
            "ratio_to_soft": _quartiles([each[name] / each["soft"] for each in rounds]),
        }
        for name in steps
    }


def cost(repeats: int, with_memory: bool) -> list[Results]:
    """Time and memory of every setting."""
    table = []
    for decoder, (_, classes) in DECODERS.items():
        for num_keys in NUM_KEYS:
            if decoder == "wide hidden" and num_keys <= BLOCK_SIZE:
                continue
            outputs = COST_BATCH * COST_QUERIES * num_keys * classes * 4 / MEBIBYTE
            row: Results = {"decoder": decoder, "keys": num_keys, "outputs_mebibytes": outputs}
            row["contestants"] = times(decoder, num_keys, repeats)
            for name, figures in row["contestants"].items():
                if with_memory:
                    command = [sys.executable, __file__, "memory", decoder, str(num_keys), name]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    figures |= json.loads(done.stdout.splitlines()[-1])
                print(f"{decoder}, {num_keys} keys, {name}: {figures}", flush=True)
            table.append(row)
    return table


@app.command()
def memory(decoder: str, num_keys: int, contestant: str) -> None:
    """Prints by how many MiB a training step raises the resident size; for one process of its own."""
    step = step_of(decoder, num_keys, contestant)
    step(1), step(2)  # compiles, for batches of any size; a whole one would leave memory behind that is used again
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size
    before = _peak()
    for _ in range(MEMORY_STEPS):
        step(COST_BATCH)
    print(json.dumps({"mebibytes": _peak() - before}))


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    num_draws: Annotated[int, typer.Option(help="Draws of each gradient.")] = 4000,
    repeats: Annotated[int, typer.Option(help="Rounds of the timing.")] = 11,
    with_memory: Annotated[bool, typer.Option(help="Whether memory is measured, a process a setting.")] = True,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Runs all parts and prints their tables."""
    if context.invoked_subcommand is not None:
        return
    import warnings

    warnings.filterwarnings("ignore", message="`network` has no variational layer")  # soft, marginal: on purpose
    results = {"gradients": gradients(num_draws), "gumbel": gumbel(num_draws), "bounds": bounds()}
    print(json.dumps(results, indent=1), flush=True)
    results["cost"] = cost(repeats, with_memory)
    if output is not None:
        from bdl.report import write_atomically

        write_atomically(output, json.dumps(results, indent=1) + "\n")
    print(markdown(results))


def markdown(results: Results) -> str:
    """The tables of the documentation."""
    found = results["gradients"]
    lines = ["| gradient | variance | plain / it | largest z, score weights |", "|---|---|---|---|"]
    lines.append(f"| enumerate | {found['variance']['enumerate']:.1g} | - | - |")
    for name in ("leave_one_out", "soft", "none"):
        factor = found["variance"]["none"] / found["variance"][name]
        lines.append(
            f"| reinforce, {name} | {found['variance'][name]:.3g} | {factor:.1f} | {found['max_z_score'][name]:.1f} |"
        )
    lines += ["", "| gumbel temperature | bias / norm | variance | bias of the bound, nats |", "|---|---|---|---|"]
    for row in results["gumbel"]["table"]:
        bias = row["gradient"]
        lines.append(
            f"| {row['temperature']} | {bias['relative_bias']:.3f} ± {bias['standard_error']:.3f} | "
            f"{bias['variance']:.3g} | {row['bound_bias']:+.3f} ± {row['bound_standard_error']:.3f} |"
        )
    header = ["decoder", "keys", "outputs MiB", "soft ms, MiB"]
    header += [cell for name in BESIDE_SOFT for cell in (f"{name} / soft", "MiB")]
    lines += ["", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in results["cost"]:
        each = row["contestants"]
        cells = [row["decoder"], str(row["keys"]), f"{row['outputs_mebibytes']:.0f}"]
        cells.append(f"{each['soft']['milliseconds'][1]:.1f}, {each['soft'].get('mebibytes', math.nan):.0f}")
        for name in BESIDE_SOFT:
            low, middle, high = each.get(name, each["soft"])["ratio_to_soft"]
            measured = [f"{middle:.1f} ({low:.1f}-{high:.1f})", f"{each.get(name, {}).get('mebibytes', math.nan):.0f}"]
            cells += measured if name in each else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _array(values: Any) -> np.ndarray:
    import keras

    return keras.ops.convert_to_numpy(values).astype("float64")


def _max_z(errors: np.ndarray) -> float:
    """Largest |mean| over its standard error, along the columns."""
    return float(np.max(np.abs(errors.mean(axis=0)) / (errors.std(axis=0, ddof=1) / math.sqrt(len(errors)))))


def _largest_z(number: int) -> float:
    from scipy.stats import norm

    return float(norm.ppf((1.0 + 0.95 ** (1.0 / number)) / 2.0))


def _seconds(step: Callable[[int], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step(COST_BATCH)
    return (time.perf_counter() - start) / count


def _quartiles(values: list[float]) -> list[float]:
    return [float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))]


def _peak() -> float:
    """Largest resident size of this process since the last reset, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    app()
