"""What Python callers hand over as a picture, and results in the same kind."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from moevision.errors import InputError
from moevision.imaging.picture import Picture, picture_from_array
from moevision.imaging.read import picture_from_pil, read_picture


def picture_of(source: Any) -> tuple[Picture, Callable[[Picture], Any]]:
    """A path, an array or a PIL image as a Picture, and what makes the same kind of one; an array for a path.

    Raises InputError where it is none of these, or cannot be read.
    """
    if isinstance(source, str | PathLike):
        return read_picture(Path(source)), _to_array
    if isinstance(source, PIL.Image.Image):
        return picture_from_pil(source), _to_pil
    if isinstance(source, np.ndarray):
        return picture_from_array(source), lambda picture: _to_array(picture).reshape(source.shape)
    raise InputError(f"{type(source).__name__} is not a picture; pass a path, a numpy array or a PIL image")


def _to_array(picture: Picture) -> np.ndarray:
    if picture.alpha_HW is None:
        return picture.pixels_HWC
    return np.concatenate([picture.pixels_HWC, picture.alpha_HW[..., None]], axis=2)


def _to_pil(picture: Picture) -> PIL.Image.Image:
    array = _to_array(picture)
    return PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
