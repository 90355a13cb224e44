"""Two architectures of `keras.applications`, as different as they come.

`benchmarks/applications.py` checks all of them: before a release, and after a change of `bdl.convert`.
"""

import pytest
from applications import check

# The first has squeeze-and-excitation, depthwise convolutions, batch statistics and dropout; the second layer
# normalization, layers that Keras defines beside it, and no dropout, so that it is inserted before the last layer.
NAMES = ["MobileNetV3Small", "ConvNeXtTiny"]


@pytest.mark.parametrize("conversion", ["variational", "mc dropout"])
@pytest.mark.parametrize("name", NAMES)
def test_conversion_keeps_its_promises(name: str, conversion: str):
    found = check(name, conversion, num_predictions=2)
    assert found.passed, found
