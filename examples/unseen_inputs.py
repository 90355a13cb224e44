"""Does the network notice what it never saw?
===========================================

A Bayesian classifier is trained on images of digits, and is then asked about other digits, about digits that are turned
by a right angle, and about noise. The legend has the AUROC: the probability that such an image is judged less certain
than an ordinary digit. The script draws the picture of the front page::

    python examples/unseen_inputs.py docs/images/unseen_inputs.png
"""

import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import bdl

x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
x_train, y_train, x_test, y_test = x[:1200], y[:1200], x[1200:], y[1200:]

# %%
# A plain Keras network, and the recipe for classifiers that should notice unseen inputs.

keras.utils.set_random_seed(0)
network = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
model = bdl.recipes.instead_of_ensemble(network, bdl.likelihoods.Categorical(), seed=0)
model.fit(x_train, y_train, batch_size=64, epochs=30, verbose=0)

# %%
# 64 draws of the network for each image. The epistemic part of their uncertainty is how much the draws disagree.

images = {
    "digits": x_test,
    "turned digits": np.rot90(x_test.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64),
    "noise": np.random.default_rng(0).uniform(size=x_test.shape).astype("float32"),
}
epistemic = {name: model.predict_distribution(each, seed=0).epistemic for name, each in images.items()}
for name, values in epistemic.items():
    print(f"{name:14s} mean epistemic uncertainty {values.mean():.2f} nats")

figure, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
bdl.plots.score_histograms(epistemic, ax=ax, xlabel="epistemic uncertainty [nats]")
if len(sys.argv) > 1:
    figure.savefig(sys.argv[1], dpi=110)
