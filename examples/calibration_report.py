"""A calibration report
====================

Does a classifier that says 90 % get 90 % right? A naive Bayes classifier of scikit-learn is judged, recalibrated on
held-out rows, and judged again. bdl needs the probabilities only.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.naive_bayes import GaussianNB
from sklearn.utils import shuffle

import bdl

x, y = shuffle(*load_digits(return_X_y=True), random_state=0)
classifier = GaussianNB(var_smoothing=1e-3).fit(x[:600], y[:600])
held_out, test = classifier.predict_proba(x[600:1200]), classifier.predict_proba(x[1200:])
y_held_out, y_test = y[600:1200], y[1200:]

# %%
# A recalibrator is fitted to predictions that the classifier made for rows it had not seen.

predictions = {"as it is": test}
for recalibrator in (bdl.calibration.TemperatureScaling(), bdl.calibration.VectorScaling()):
    name = type(recalibrator).__name__
    predictions[name] = recalibrator.fit(held_out, y_held_out).predict_proba(test)

# %%
# Every score with its bootstrap interval. ``save_html("report.html")`` writes them with all figures.

evaluation = bdl.evaluate(y_test, predictions, num_resamples=200)
print(evaluation)

# %%
# Points below the diagonal are overconfident.

bins = [bdl.calibration.reliability_bins(y_test, each) for each in predictions.values()]
_, ax = plt.subplots(figsize=(5, 5))
bdl.plots.reliability_diagram(bins, labels=list(predictions), ax=ax)
plt.show()
