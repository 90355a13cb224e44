"""Every public layer tells every argument of its signature."""

import inspect
import re

import keras
import pytest

import bdl
from bdl.layers.documentation import complete_docstring

LAYERS = [
    name
    for name in bdl.layers.__all__
    if isinstance(getattr(bdl.layers, name), type) and issubclass(getattr(bdl.layers, name), keras.Layer)
]


def told(doc):
    """Names of the arguments in the section of arguments."""
    section = re.search(r"^Args:\n((?: .*\n|\n)*)", inspect.cleandoc(doc) + "\n", flags=re.MULTILINE)
    names = re.findall(r"^ {4}(\*{0,2}\w[\w*, ]*):", section.group(1), flags=re.MULTILINE) if section else []
    return [name.strip("* ") for each in names for name in each.split(",")]


@pytest.mark.parametrize("name", LAYERS)
def test_the_docstring_tells_every_argument_of_the_signature_and_no_other(name):
    layer = getattr(bdl.layers, name)
    parameters = inspect.signature(layer).parameters
    assert "args" not in parameters
    assert told(layer.__doc__) == list(parameters)


@pytest.mark.parametrize("name", LAYERS)
def test_the_docstring_points_at_no_private_class(name):
    doc = inspect.cleandoc(getattr(bdl.layers, name).__doc__)
    assert not re.search(r"`(Named\w+|LatentAlignment)`", doc)
    assert doc.count("\nExample:") == 1
    assert re.search(r"^(Sources?|Raises)\b", doc, flags=re.MULTILINE)


def test_texts_come_from_the_nearest_class():
    class Far:
        """Far.

        Args:
            a: Far's a,
                in two lines.
            b: Far's b.

        Raises:
            ValueError: if it is far.
        """

    class Near:
        """Near.

        More of it.

        Args:
            b: Near's b.

        Example:
        >>> Near
        """

        def __init__(self, a, b, c, **kwargs):
            pass

    complete_docstring(Near, [Far], otherwise="Elsewhere.")
    assert Near.__doc__.splitlines() == [
        "Near.",
        "",
        "More of it.",
        "",
        "Args:",
        "    a: Far's a,",
        "        in two lines.",
        "    b: Near's b.",
        "    c: Elsewhere.",
        "    **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.",
        "",
        "Raises:",
        "    ValueError: if it is far.",
        "",
        "Example:",
        ">>> Near",
    ]
    Near.__doc__ = "Near."
    with pytest.raises(ValueError, match="No docstring tells the argument 'c' of Near"):
        complete_docstring(Near, [Far])
