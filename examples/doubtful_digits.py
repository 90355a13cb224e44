"""Classification that may abstain
===============================

A Bayesian classifier names digits. Its most doubtful images go to a person: how many errors are left among the rest?
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import bdl

x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
x_train, y_train, x_test, y_test = x[:1000], y[:1000], x[1000:], y[1000:]

# %%
# Rank-1 layers multiply inputs and outputs by random factors. Otherwise they are Keras' dense layers.

keras.utils.set_random_seed(0)
network = keras.Sequential(
    [keras.Input((64,)), bdl.layers.DenseRank1(64, activation="relu", seed=1), bdl.layers.DenseRank1(10, seed=2)]
)
model = bdl.VariationalModel(network, bdl.likelihoods.Categorical())
model.compile(keras.optimizers.Adam(3e-3))
model.fit(x_train, y_train, batch_size=50, epochs=20, verbose=0)
prediction = model.predict_distribution(x_test, num_samples=64, seed=0)

# %%
# The risk at a coverage is the error rate of those images about which the network is most certain.

wrong = prediction.probabilities.argmax(-1) != y_test
curve = bdl.calibration.risk_coverage_curve(wrong, prediction.total_uncertainty)
for share in (1.0, 0.9, 0.8):
    risk = curve.risk[np.searchsorted(curve.coverage, share)]
    print(f"keep the most certain {share:4.0%}: {risk:.1%} errors")

_, ax = plt.subplots(figsize=(6, 3))
bdl.plots.risk_coverage(curve, ax=ax)
plt.show()

# %%
# These are the images to show to a person first.

doubtful = np.argsort(prediction.total_uncertainty)[-12:][::-1]
said = prediction.probabilities.argmax(-1)
titles = [f"said {said[i]}, is {y_test[i]}" for i in doubtful]
_, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
bdl.plots.image_grid(x_test[doubtful].reshape(-1, 8, 8), titles, ax=ax, columns=6)
plt.show()
