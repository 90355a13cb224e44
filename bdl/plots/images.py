"""Images in a grid, with what was said of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdl.plots._style import axes_or_new, ink, letter_points
from bdl.report import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the size of the text: the height of a title's line, and the width of a character.
_LINE_HEIGHT = 1.25
_CHARACTER_WIDTH = 0.62


def image_grid(images: ArrayLike, titles: Sequence[str], ax: Axes | None = None, columns: int | None = None) -> Axes:
    """Draw images in rows with a title above each.

    Args:
        images: Shape `(n, height, width)` or `(n, height, width, 1)` for grey ones, drawn on one common scale from
            their smallest value (black) to their largest (white); `(n, height, width, 3)` or `(..., 4)` for colour,
            as integers from 0 to 255 or floats from 0 to 1.
        titles: One for each image, of one or more lines.
        ax: Axes whose area the grid fills; its own frame disappears.
        columns: Images in a row; by default as many as make the grid about square.

    Returns:
        The axes around the grid; `ax.child_axes` holds the axes of each image.

    Raises:
        ValueError: if the shape of `images` is another, the number of titles differs, or colours are out of range.

    Example:
    >>> import numpy as np
    >>> ax = image_grid(np.zeros((2, 8, 8)), ["0.1 nats", "2.3 nats"])
    >>> [image.get_title() for image in ax.child_axes]
    ['0.1 nats', '2.3 nats']
    """
    pictures = _checked_images(images)
    count = len(pictures)
    if len(titles) != count:
        raise ValueError(f"`titles` must name each of the {count} images, not {len(titles)} titles. Pass {count}.")
    if columns is not None and columns < 1:
        raise ValueError(f"`columns` must be a positive integer or None, not {columns!r}. Pass None for a square.")
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    titles = [printable(title) for title in titles]
    is_new = ax is None
    ax = axes_or_new(ax, width=1, height=1)
    letter_inches = letter_points(ax) / 72
    title_inches = _LINE_HEIGHT * letter_inches * max(title.count("\n") + 1 for title in titles) + 0.08
    figure = ax.get_figure(root=True)
    if is_new and figure is not None:
        longest = max(len(line) for title in titles for line in title.split("\n"))
        width = max(1.17, _CHARACTER_WIDTH * letter_inches * longest + 0.06)
        height = 0.94 * width * pictures.shape[1] / pictures.shape[2] + title_inches
        figure.set_size_inches(width * columns, height * rows + 0.04)
        ax.set_position((0, 0, 1, 1))
    ax.set_axis_off()

    # A row is a title and an image; the title takes the height that its text needs in the axes as they are now.
    axes_inches = ax.get_window_extent().height / ax.figure.dpi
    row_height, column_width = 1 / rows, 1 / columns
    image_height = max(row_height - title_inches / axes_inches, row_height / 2)
    grey_scale = {"cmap": "gray", "vmin": pictures.min(), "vmax": pictures.max()} if pictures.ndim == 3 else {}
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        row, column = divmod(i, columns)
        left, bottom = (column + 0.03) * column_width, (rows - 1 - row + 0.02) * row_height
        cell = ax.inset_axes((left, bottom, 0.94 * column_width, 0.98 * image_height))
        cell.imshow(picture, interpolation="nearest", **grey_scale)
        cell.set_title(title, fontsize=72 * letter_inches, color=ink(ax), pad=3, parse_math=False)
        cell.set_axis_off()
    return ax


def _checked_images(images: ArrayLike) -> NDArray[Any]:
    """Return images `(n, height, width)` if grey, `(n, height, width, 3 or 4)` if in colour."""
    array = np.asarray(images)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (3, 4))):
        raise ValueError(
            "`images` must have shape (n, height, width) or (n, height, width, 1, 3 or 4), "
            f"not shape {array.shape}. Move the channels last, or add the axis of one image with `images[None]`."
        )
    if array.ndim == 4 and array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            "`images` in colour must be floats from 0 to 1, or integers from 0 to 255, "
            f"not {array.dtype} from {array.min():.4g} to {array.max():.4g}. "
            "Divide by 255, or undo the standardisation."
        )
    return array
