"""The kind of image a model was trained on, and whether another image is of that kind.

A network accepts any numbers: reflectances from 0 to 1 although it was trained on bytes, bands in another order, pixels
of another size, palette indices. The map is then wrong without any warning. So the model stores the kind of image it
was trained on (``record["image"]``), which is compared before mapping. Brightness varies with season and place;
an image is rejected only for other units: values tens of times larger or smaller.
"""

from __future__ import annotations

import logging
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from landprior.errors import InputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from landprior.landcover.training.layers import ImageLayer
    from landprior.landcover.training.model import LandcoverModel

logger = logging.getLogger(__name__)

_SIDE, _GRID = 128, 4
"""Windows whose values are examined: side in pixels, and number in each direction."""

MOST_PIXEL_RATIO = 1.5
"""Maximum ratio of pixel sizes on the ground."""

_MOST_LARGER, _MOST_SMALLER = 8.0, 12.0
"""Maximum ratio of values; generous, as clouds are brighter and water is darker than most of an image."""

_MOST_SMALLER_BYTES = 50.0
"""The same for bytes, whose unit is clear: a dark image is accepted, values of 0 to 5 are not."""

_MOST_DEVIATIONS = 20.0
"""Maximum difference of band means, for models that store only means and standard deviations."""

_COLOURS = {
    "r": "red", "red": "red", "g": "green", "green": "green", "b": "blue", "blue": "blue",
    "n": "nir", "nir": "nir", "nearinfrared": "nir", "infrared": "nir", "nir1": "nir",
}  # fmt: skip
"""Known band names, without case, spaces and punctuation."""

_ORDER = ("red", "green", "blue", "nir")
"""Customary band orders."""

_TAGGED = {ColorInterp.red: "red", ColorInterp.green: "green", ColorInterp.blue: "blue"}


class ImageKind(BaseModel):
    """The kind of image a model was trained on.

    Parameters
    ----------
    dtype
        Data type of the file; None if there is no image, as for a learned prior.
    low, high
        The 1st and 99th percentile of each band over windows spread over the image; None if none has data.
    names
        Meaning of each band, by its description or colour; None if the file does not tell.
    pixel_size
        On the ground, metres; None if unknown.
    marks
        Numbers (from 1) of integer bands with no values but 0 and the maximum, as in a mask that is not declared as
        alpha.
    nodata
        How no data is marked: ``"value"``, ``"mask"``, ``"given"`` (with ``--nodata``) or ``"none"``.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    dtype: str | None = None
    low: list[float] | None = None
    high: list[float] | None = None
    names: list[str | None] = []
    pixel_size: float | None = None
    marks: list[int] = []
    nodata: str = "none"

    @classmethod
    def of(cls, layer: ImageLayer) -> ImageKind:
        """Return the kind of an open image."""
        found = _sample(layer)
        low, high = (None, None) if found is None else np.percentile(found, [1, 99], axis=1).tolist()
        return cls(
            dtype=layer.src.dtypes[layer.indexes[0] - 1],
            low=low,
            high=high,
            names=_name_bands(layer),
            pixel_size=ground_size(layer),
            marks=_find_marks(found, layer.dtype),
            nodata=_describe_nodata(layer),
        )

    def differences(self, other: ImageKind, *, values: bool = True) -> list[str]:
        """Return how another kind of image differs from this one.

        Parameters
        ----------
        other
            Kind of the other image.
        values
            Also compare the range of values.

        Returns
        -------
        list of str
            One sentence per difference; empty if there are none.
        """
        found: list[str] = []
        if self.dtype is not None and other.dtype is not None and self.dtype != other.dtype:
            found.append(f"its values are {_range(other)}, those trained on {_range(self)}")
        elif values:
            found.extend(self._compare_values(other))
        found.extend(self._compare_marks(other))
        found.extend(_compare_names(self.names, other.names))
        found.extend(compare_sizes(self.pixel_size, other.pixel_size))
        return found

    def doubts(self, other: ImageKind) -> list[str]:
        """Return possible problems of an image that is not certainly of another kind, one sentence each."""
        found = []
        first = [name for name in other.names if name in _ORDER]
        if not any(self.names) and len(first) > 1 and first != sorted(first, key=_ORDER.index):
            found.append(f"its bands are {', '.join(map(str, other.names))}, and the model does not store their order")
        pairs = [] if self.low is None or self.high is None else list(zip(self.low, self.high, strict=True))
        given = [] if other.low is None or other.high is None else list(zip(other.low, other.high, strict=True))
        if len(pairs) == len(given):
            flat = [low == high for low, high in given]
            dead = [i for i, (low, high) in enumerate(pairs) if flat[i] and low < high and not all(flat)]
            found += [
                f"its band {i + 1} is {given[i][0]:g} nearly everywhere, and held values in training" for i in dead
            ]
        return found

    def _compare_marks(self, other: ImageKind) -> list[str]:
        new = [number for number in other.marks if number not in self.marks]
        if self.low is None or len(self.low) != len(other.low or []) or not new:
            return []
        return [f"its band {new[0]} holds only 0 and the largest number, like a mask, and held values in training"]

    def _compare_values(self, other: ImageKind) -> list[str]:
        if self.high is None or other.high is None or self.low is None or other.low is None:
            return []
        if len(self.high) != len(other.high):
            return []
        own, given = (max(map(abs, (*kind[0], *kind[1]))) for kind in ((self.low, self.high), (other.low, other.high)))
        if own > 0 and _differs_widely(given / own, self.dtype):
            return [f"its values are {_range(other)}, those trained on {_range(self)}"]
        for index, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            flat = low == high and not low <= other.high[index] <= high and other.low[index] != other.high[index]
            if flat:
                return [f"its band {index + 1} holds values, and was {low:g} everywhere in training"]
        return []


def _differs_widely(ratio: float, dtype: str | None) -> bool:
    if dtype in ("uint8", "int8"):
        return ratio < 1 / _MOST_SMALLER_BYTES
    return ratio > _MOST_LARGER or ratio < 1 / _MOST_SMALLER


def _range(kind: ImageKind) -> str:
    if kind.low is None or kind.high is None:
        return str(kind.dtype)
    return f"{kind.dtype} of about {min(kind.low):.3g} to {max(kind.high):.3g}"


def compare_sizes(trained: float | None, given: float | None) -> list[str]:
    """Return a sentence if pixels of a size on the ground, in metres, are too large or too small for a model."""
    if not trained or not given or max(given / trained, trained / given) <= MOST_PIXEL_RATIO:
        return []
    return [f"its pixels are {given:.3g} m wide, those trained on {trained:.3g} m"]


def _compare_names(trained: Sequence[str | None], given: Sequence[str | None]) -> list[str]:
    if len(trained) != len(given):
        return []
    wrong = [
        f"band {number} is {other}, and was {own} in training"
        for number, (own, other) in enumerate(zip(trained, given, strict=True), 1)
        if own is not None and other is not None and own != other
    ]
    return wrong[:1] if len(wrong) < 2 else [f"{wrong[0]} (and {len(wrong) - 1} more bands)"]


def _name_bands(layer: ImageLayer) -> list[str | None]:
    descriptions = [layer.src.descriptions[index - 1] or "" for index in layer.indexes]
    if _are_numbered(descriptions):
        descriptions = [""] * len(descriptions)
    return [
        _name(number, text, layer.src.colorinterp[index - 1])
        for number, (text, index) in enumerate(zip(descriptions, layer.indexes, strict=True), 1)
    ]


def _are_numbered(names: Sequence[str]) -> bool:
    """Return whether bands are named by one word and their numbers, as R names them after the file (``tile12_3``)."""
    found = [re.fullmatch(r"(.*?)0*(\d+)", text) for text in names]
    stems = {match[1] for match in found if match}
    return len(stems) == 1 and all(match and int(match[2]) == number for number, match in enumerate(found, 1))


def _find_marks(found: NDArray[np.float64] | None, dtype: np.dtype[Any]) -> list[int]:
    """Return the numbers of bands that look like masks, if not all do."""
    if found is None or dtype.kind not in "iu":
        return []
    marks = [
        number
        for number, band in enumerate(found, 1)
        if band.max() in (255, 65535) and ((band == 0) | (band == band.max())).all()
    ]
    return [] if len(marks) == len(found) else marks


def _name(number: int, description: str | None, colour: ColorInterp) -> str | None:
    """Return the meaning of a band; None if its description is only a number, a file name or a date."""
    text = re.sub(r"[\W_]+", "", (description or "").lower())
    if text in _COLOURS:
        return _COLOURS[text]
    tagged = _TAGGED.get(colour) or ("nir" if colour.name.lower() == "nir" else None)
    numbered = re.fullmatch(r"(?:band|b|channel|layer|gray)?0*(\d+)", text)
    if not text or (numbered and int(numbered[1]) == number) or re.search(r"\d{4}", text) or "." in (description or ""):
        return tagged
    return text


def ground_size(layer: ImageLayer) -> float | None:
    """Return the size of an image's pixels on the ground, metres; None if unknown."""
    try:
        return math.sqrt(math.prod(layer.grid.pixel_size(where=layer.path)))
    except InputError:
        return None


def _describe_nodata(layer: ImageLayer) -> str:
    if layer.src.nodata is not None:
        return "value"
    if len(layer.indexes) < layer.src.count:
        return "mask"
    return "given" if layer.given_nodata is not None else "none"


def _sample(layer: ImageLayer) -> NDArray[np.float64] | None:
    """Return valid pixels from windows spread over an image, (B, N); None if there are none."""
    height, width = layer.grid.shape
    rows, columns = (
        sorted(set(np.linspace(0, max(size - _SIDE, 0), _GRID).astype(int).tolist())) for size in (height, width)
    )
    found = []
    for top in rows:
        for left in columns:
            values, valid = layer.read(Window(left, top, min(_SIDE, width), min(_SIDE, height)))
            found.append(values[:, valid].astype(np.float64))
    whole = np.concatenate(found, axis=1)
    return whole if whole.shape[1] else None


def require_kind(model: LandcoverModel, layer: ImageLayer, *, force: bool = False) -> None:
    """Raise an error if an image is of another kind than a model's training images.

    Parameters
    ----------
    model
        Older models without a stored kind are compared by their band statistics.
    layer
        The open image.
    force
        Warn instead.

    Raises
    ------
    ModelError
        If the image has another data type, values tens of times larger or smaller, other bands, or pixels of another
        size.
    """
    given = ImageKind.of(layer)
    trained = kind_of(model)
    found = _compare_statistics(model, given) if trained is None else trained.differences(given)
    if not found:
        for doubt in trained.doubts(given) if trained is not None else []:
            logger.warning("%s may be another kind of image than the model was trained on: %s", layer.path, doubt)
        return
    what = f"{layer.path} is another kind of image than the model was trained on: {'; '.join(found)}"
    if force:
        logger.warning("%s (--force)", what)
        return
    msg = f"{what}. Give an image of that kind, train a model on this kind, or map it with: landprior predict --force"
    raise ModelError(msg)


def kind_of(model: LandcoverModel) -> ImageKind | None:
    """Return the kind of image a model was trained on; None for older models that do not store it.

    Raises
    ------
    ModelError
        If the model file has an invalid kind.
    """
    record: dict[str, Any] | None = model.record.get("image")
    if record is None:
        return None
    try:
        return ImageKind.model_validate(record)
    except ValidationError as error:
        msg = f"the model's record of its training images is invalid ({error.errors()[0]['msg']}); train it again"
        raise ModelError(msg) from error


def _compare_statistics(model: LandcoverModel, given: ImageKind) -> list[str]:
    """Compare an image with a model that stores only means and standard deviations of bands."""
    mean, std = model.statistics.mean, model.statistics.std
    if given.low is None or given.high is None or len(given.low) != len(mean):
        return []
    own = float(np.abs([mean - 2 * std, mean + 2 * std]).max())
    values = max(map(abs, (*given.low, *given.high)))
    middle = (np.array(given.low) + np.array(given.high)) / 2
    off = float((np.abs(middle - mean) / std).min()) > _MOST_DEVIATIONS and given.dtype != "uint8"
    # bytes may be darker in another place; other units differ by more
    smaller = _MOST_SMALLER_BYTES if given.dtype == "uint8" else _MOST_SMALLER
    if own > 0 and (off or values / own > 2 * _MOST_LARGER or values / own < 1 / smaller):
        return [f"its values are {_range(given)}, and the model's bands have means of about {mean.max():.3g}"]
    return []


def require_one_kind(kinds: Sequence[tuple[str, ImageKind | None]]) -> ImageKind | None:
    """Return the common kind of images that are trained on together, with the value range of all.

    Parameters
    ----------
    kinds
        Name and kind of each.

    Returns
    -------
    ImageKind or None
        None if no kind is known.

    Raises
    ------
    InputError
        If two differ; the message names them.
    """
    known = [(name, kind) for name, kind in kinds if kind is not None]
    if not known:
        return None
    first, kind = known[0]
    for name, other in known[1:]:
        found = kind.differences(other)
        if found:
            msg = f"{name} is another kind of image than {first}: {'; '.join(found)}; train on images of one kind"
            raise InputError(msg.replace("those trained on", f"{first}'s").replace("in training", f"in {first}"))
    lows, highs = ([getattr(k, side) for _, k in known if getattr(k, side) is not None] for side in ("low", "high"))
    if not lows:
        return kind
    low, high = np.min(lows, axis=0).tolist(), np.max(highs, axis=0).tolist()
    return kind.model_copy(update={"low": low, "high": high})
