"""Regression with intervals
=========================

Regression with intervals on scikit-learn's diabetes data: does a 90 % interval hold 90 % of unseen patients?

    python examples/diabetes_regression.py
"""

import keras
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import bdl


def main() -> None:
    x, y = load_diabetes(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=0)
    center, spread = y.mean(), y.std()
    x, x_test = x / x.std(0), x_test / x.std(0)

    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((x.shape[1],)),
            bdl.layers.DenseLocalReparameterization(50, activation="relu"),
            bdl.layers.DenseLocalReparameterization(1),
        ]
    )
    model = bdl.VariationalModel(network, bdl.likelihoods.Normal())
    model.compile(keras.optimizers.Adam(3e-3))
    history = model.fit(x, (y - center) / spread, epochs=300, verbose=0).history

    prediction = model.predict_distribution(x_test, num_samples=200, batch_size=200)
    low, high = prediction.quantile([0.05, 0.95])
    target = (y_test - center) / spread
    print(f"ELBO per example at T = {history['temperature'][-1]:.2f}: {history['elbo'][-1]:.3f} nats")
    print(f"root mean squared error: {spread * np.sqrt(np.mean((prediction.mean - target) ** 2)):.1f}")
    print(f"log predictive density per patient: {prediction.log_prob(target).mean():.3f} nats (standardised units)")
    print(f"share of patients inside their 90 % interval: {np.mean((low <= target) & (target <= high)):.2f}")
    share = np.mean(prediction.epistemic / prediction.variance)
    print(f"share of the variance that is epistemic: {share:.2f}")


if __name__ == "__main__":
    main()
