"""What is not a probability is called what it is."""

import numpy as np
import pytest

from bdl.calibration import TemperatureScaling, brier_score, negative_log_likelihood
from bdl.calibration._validation import check_probabilities

P = np.array([[0.95, 0.05], [0.3, 0.7], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (1.1 * P, r"not 1\.045 at index \(0, 0\)\. Every row sums to 1\.1: .*Divide each row by its sum"),
        (100 * P, r"Every row sums to 100: .*Divide each row by its sum"),
        (100 * P.astype(np.float32), r"Every row sums to 100: "),
        (np.array([[3, 1], [5, 2], [0, 9]]), r"rows sum to between 4 and 9: divide each row by its sum"),
        (np.array([[3.0, -1.0], [0.2, 0.8]]), r"They look like logits: pass their softmax"),
        (np.array([0.1, -2.0]), r"They look like logits: pass their sigmoid"),
        (np.array([10.0, 90.0]), r"not 10\.0 at index 0\. None is negative: divide percentages by 100"),
        (0.9 * P, r"must sum to 1 in every row, not a sum of 0\.9 in row 0"),
    ],
    ids=["times 1.1", "percent", "percent, float32", "votes", "logits", "binary logits", "binary percent", "times 0.9"],
)
def test_the_message_says_what_was_given(given, message):
    with pytest.raises(ValueError, match=message):
        check_probabilities(given)


@pytest.mark.parametrize("use", [negative_log_likelihood, brier_score, lambda y, p: TemperatureScaling().fit(p, y)])
def test_metrics_and_recalibrators_say_it_alike(use):
    with pytest.raises(ValueError, match=r"Every row sums to 1\.1") as error:
        use([0, 1, 0], 1.1 * P)
    assert "logits" not in str(error.value)
