"""Ten architectures of `keras.applications`, as different as they come; `benchmarks/applications.py` has them all."""

import pytest
from applications import check

NAMES = [
    "VGG16",
    "ResNet50V2",
    "Xception",
    "InceptionV3",
    "MobileNetV2",
    "MobileNetV3Small",
    "DenseNet121",
    "NASNetMobile",
    "EfficientNetB0",
    "ConvNeXtTiny",
]


@pytest.mark.parametrize("conversion", ["variational", "mc dropout"])
@pytest.mark.parametrize("name", NAMES)
def test_conversion_keeps_its_promises(name: str, conversion: str):
    found = check(name, conversion, num_predictions=2)
    assert found.passed, found
