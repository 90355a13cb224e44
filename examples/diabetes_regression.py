"""Regression with intervals
=========================

Regression on scikit-learn's diabetes data: do 90 % intervals hold 90 % of unseen patients?
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import bdl

x, y = load_diabetes(return_X_y=True)
x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=0)
center, spread = y.mean(), y.std()
x, x_test = x / x.std(0), x_test / x.std(0)
target = (y_test - center) / spread

# %%
# Each kernel has a Gaussian posterior. ``Normal()`` learns the scale of the noise.

keras.utils.set_random_seed(0)
layer = bdl.layers.DenseLocalReparameterization
network = keras.Sequential([keras.Input((x.shape[1],)), layer(50, activation="relu", seed=1), layer(1, seed=2)])
model = bdl.VariationalModel(network, bdl.likelihoods.Normal())
model.compile(keras.optimizers.Adam(3e-3))
history = model.fit(x, (y - center) / spread, epochs=100, verbose=0).history
print(f"ELBO per example at T = {history['temperature'][-1]:.2f}: {history['elbo'][-1]:.3f} nats")

# %%
# A prediction is a mixture of Normals, and its variance has two parts.

prediction = model.predict_distribution(x_test, num_samples=200, seed=0)
low, high = prediction.quantile([0.05, 0.95])
inside = (low <= target) & (target <= high)
share = np.mean(prediction.epistemic / prediction.variance)
print(f"root mean squared error: {spread * np.sqrt(np.mean((prediction.mean - target) ** 2)):.1f}")
print(f"log predictive density per patient: {prediction.log_prob(target).mean():.3f} nats (standardised units)")
print(f"share of patients inside their 90 % interval: {inside.mean():.2f}")
print(f"share of the variance that is epistemic: {share:.2f}")

# %%
# Patients in the order of their predicted means.

order = np.argsort(prediction.mean)
low, high, mean = (center + spread * each[order] for each in (low, high, prediction.mean))
rank = np.arange(len(order))
_, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
ax.vlines(rank, low, high, color="#0072b2", alpha=0.25, lw=3, label="90 % interval")
ax.plot(rank, mean, color="#0072b2", label="mean")
for is_inside, color in ((True, "0.2"), (False, "#d55e00")):
    chosen = inside[order] == is_inside
    label = "patient inside" if is_inside else "patient outside"
    ax.plot(rank[chosen], y_test[order][chosen], "o", ms=3.5, color=color, label=label)
ax.set(xlabel="patients, by predicted mean", ylabel="progression of the disease", xticks=[])
ax.legend(frameon=False, ncols=2, loc="upper left")
ax.spines[["top", "right"]].set_visible(False)
plt.show()
