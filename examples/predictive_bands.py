"""Predictive bands of a small regression
======================================

A Bayesian network is trained on 120 points with a gap between them. The dark band is what the network does not know
(epistemic), the light one adds the noise of the data (aleatoric). The script draws the picture of the front page:

    python examples/predictive_bands.py docs/images/predictive_bands.png
"""

import sys

import keras
import matplotlib.pyplot as plt
import numpy as np

import bdl

random = np.random.default_rng(0)
x = np.concatenate([random.uniform(-2.0, -0.6, 60), random.uniform(0.6, 2.0, 60)]).astype("float32")
y = np.sin(2.5 * x) + 0.15 * random.normal(size=x.shape)

# %%
# A plain Keras network, and the recipe for few examples and full Bayes: every weight has a Gaussian posterior.

keras.utils.set_random_seed(0)
network = keras.Sequential(
    [
        keras.Input((1,)),
        keras.layers.Dense(50, "tanh"),
        keras.layers.Dense(50, "tanh"),
        keras.layers.Dense(1),
    ]
)
model = bdl.recipes.fully_gaussian(network, bdl.likelihoods.Normal(), seed=0)
model.fit(x[:, None], y, batch_size=30, epochs=600, verbose=0)

# %%
# 200 draws of the network give the predictive distribution, and the two parts of its variance.

grid = np.linspace(-3.0, 3.0, 301).astype("float32")
prediction = model.predict_distribution(grid[:, None], num_samples=200, consistent=True, seed=0)
mean, doubt, total = prediction.mean, np.sqrt(prediction.epistemic), prediction.std

figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
ax.fill_between(grid, mean - 2 * total, mean + 2 * total, alpha=0.2, label="with the noise of the data")
ax.fill_between(grid, mean - 2 * doubt, mean + 2 * doubt, alpha=0.4, color="C0", label="what the network does not know")
ax.plot(grid, mean, label="mean")
ax.plot(x, y, ".", color="black", markersize=4, label="data")
ax.set(xlabel="x", ylabel="y", ylim=(-3, 3), title="Two standard deviations")
ax.legend(loc="upper center", ncols=2, frameon=False)

near = np.abs(np.abs(grid) - 1.3) < 0.7
print(f"epistemic standard deviation: {doubt[near].mean():.2f} at the data, {doubt[~near].mean():.2f} elsewhere")
if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=110)
