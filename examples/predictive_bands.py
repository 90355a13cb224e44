"""Predictive bands
================

A Bayesian network is fitted to noisy measurements of a curve. Its wide band is for new measurements, and its narrow
band for the curve itself, as far as the network knows it. The script draws the picture of the README::

    python examples/predictive_bands.py docs/images/predictive_bands.png
"""

import sys

import keras
import matplotlib.pyplot as plt
import numpy as np

import bdl

random = np.random.default_rng(0)


def measure(count):
    x = np.sort(random.uniform(-3, 3, count)).astype("float32")
    noise = 0.05 + 0.4 / (1 + np.exp(-3 * (x - 0.5)))
    return x[:, None], np.sin(2 * x) + 0.4 * x + noise * random.normal(size=count)


# %%
# The network has two outputs, the mean and the scale of the noise: this noise grows with x.

x, y = measure(400)
keras.utils.set_random_seed(0)
hidden = [keras.layers.Dense(64, "relu") for _ in range(2)]
network = keras.Sequential([keras.Input((1,)), *hidden, keras.layers.Dense(2)])
model = bdl.recipes.regression(network, bdl.likelihoods.Normal(heteroscedastic=True), seed=0)
model.fit(x, y, epochs=300, batch_size=20, verbose=0)

# %%
# New measurements tell whether the bands hold what they promise. These are on the cautious side.

x_new, y_new = measure(2000)
low, high = model.predict_distribution(x_new, num_samples=200, seed=0).quantile([0.05, 0.95])
print(f"90 % bands hold {np.mean((low <= y_new) & (y_new <= high)):.1%} of 2,000 new measurements")

# %%
# `consistent=True` draws whole curves, so that the bands are smooth.

grid = np.linspace(-3, 3, 300, dtype="float32")
prediction = model.predict_distribution(grid[:, None], num_samples=200, consistent=True, seed=0)
low, high = prediction.quantile([0.05, 0.95])
unsure = 1.645 * np.sqrt(prediction.epistemic)

figure, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
ax.fill_between(grid, low, high, color="#0072b2", alpha=0.15, lw=0, label="90 % of new measurements")
ax.fill_between(
    grid, prediction.mean - unsure, prediction.mean + unsure, color="#0072b2", alpha=0.45, lw=0, label="90 % of curves"
)
ax.plot(x, y, ".", color="0.2", ms=3.5, label="measurements")
ax.plot(grid, np.sin(2 * grid) + 0.4 * grid, color="#d55e00", lw=1.2, ls="--", label="the true curve")
ax.set(xlabel="x", ylabel="y", xlim=(-3, 3))
ax.legend(frameon=False, loc="upper left")
ax.spines[["top", "right"]].set_visible(False)
if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=110)
