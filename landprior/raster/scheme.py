"""Class schemes: the codes, names and colours of a land-cover legend.

One :class:`ClassScheme` serves priors, colour tables, metrics and legends. Schemes are YAML files
(``configs/schemes``, or the user's own)::

    name: my-scheme
    title: My land cover
    classes:
      - {code: 1, name: water, colour: "#00c5ff", role: water}
      - {code: 2, name: trees, colour: "#267300", merge: [21, 22]}
      - {code: 3, name: built, colour: "#9c9c9c", role: impervious}
    ignored: [0, 15]

``merge`` lists other codes that mean the class in label rasters; ``ignored`` lists codes that
mean no data in training and scoring. ``role`` tells the hand-coded prior which class roads and
buildings (``impervious``) and water layers (``water``) add to.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from landprior.errors import ConfigError, InputError, SchemeError
from landprior.inputs import read_text
from landprior.resources import find_config, read_yaml
from landprior.strict_yaml import find_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MAP_NODATA = 255
"""The nodata value of every class map landprior writes; no class may have this code."""

IGNORED_INDEX = -1
"""Result of :meth:`ClassScheme.encode` for ignored codes and nodata."""

Role = Literal["water", "impervious"]
Code = Annotated[int, Field(ge=0, lt=MAP_NODATA)]


def plain_name(text: str) -> str:
    """Return a name normalised for comparison, without case, width, spaces and forms of accents."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_code(text: str) -> int | None:
    """Return the code in a text (``"11"``, ``"11.0"``, ``" 11 "``), None if it is not a number."""
    match = re.fullmatch(r"\s*([-+]?\d{1,9})([.,]0*)?\s*", text)
    return None if match is None else int(match[1])


class LandClass(BaseModel):
    """One class of a scheme."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: Code
    name: str = Field(min_length=1)
    colour: str = Field(pattern=r"^#[0-9a-fA-F]{6}$")
    merge: tuple[int, ...] = ()
    role: Role | None = None
    description: str = ""

    @field_validator("name")
    @classmethod
    def _name_can_be_a_label(cls, name: str) -> str:
        plain = " ".join(name.split())
        if not plain:
            msg = "the name is empty"
            raise ValueError(msg)
        if "|" in plain or plain.startswith("!"):
            msg = f"the name {name!r} may not contain | or start with !, which mean 'or' and 'not' in labels"
            raise ValueError(msg)
        return plain

    @model_validator(mode="after")
    def _name_is_no_other_code(self) -> LandClass:
        if read_code(self.name) not in {None, self.code, *self.merge}:
            msg = f"class {self.code} is named {self.name!r}, which is another code in labels; give it a name in words"
            raise ValueError(msg)
        return self

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, 0-255."""
        return (int(self.colour[1:3], 16), int(self.colour[3:5], 16), int(self.colour[5:7], 16))


class ClassScheme(BaseModel):
    """An ordered set of classes; the order is the order of bands in priors and probabilities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    title: str = ""
    source: str = ""
    classes: tuple[LandClass, ...] = Field(min_length=2)
    ignored: tuple[int, ...] = ()

    @field_validator("classes")
    @classmethod
    def _names_and_codes_are_unique(cls, classes: tuple[LandClass, ...]) -> tuple[LandClass, ...]:
        seen: dict[str, str] = {}
        for name in (c.name for c in classes):
            if name in seen.values():
                msg = f"class names must be unique; {name} occurs twice"
                raise ValueError(msg)
            first = seen.setdefault(plain_name(name), name)
            if first != name:
                msg = f"class names must be unique; {first!r} and {name!r} differ only in case, spaces or accents"
                raise ValueError(msg)
        owners: dict[int, str] = {}
        for c in classes:
            for code in (c.code, *c.merge):
                if code in owners:
                    msg = f"a code may stand for only one class; {code} stands for {owners[code]!r} and {c.name!r}"
                    raise ValueError(msg)
                owners[code] = c.name
        return classes

    @model_validator(mode="after")
    def _ignored_codes_are_others(self) -> ClassScheme:
        of_classes = {code for c in self.classes for code in (c.code, *c.merge)}
        both = sorted(of_classes & set(self.ignored))
        if both:
            msg = f"a code cannot be ignored and stand for a class; {both} do both: remove them from ignored or classes"
            raise ValueError(msg)
        twice = sorted(code for code, n in Counter(self.ignored).items() if n > 1)
        if twice:
            msg = f"ignored lists {twice} twice; keep one"
            raise ValueError(msg)
        return self

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        """Class names, in order."""
        return [c.name for c in self.classes]

    @property
    def codes(self) -> NDArray[np.uint8]:
        """Class codes, in order, shape (C,)."""
        return np.array([c.code for c in self.classes], dtype=np.uint8)

    @property
    def colours(self) -> NDArray[np.uint8]:
        """Class colours, shape (C, 3), red green blue."""
        return np.array([c.rgb for c in self.classes], dtype=np.uint8)

    def index(self, key: str | int) -> int:
        """Return the position of a class given by name or by code (including merged codes).

        Case, spaces, and the Unicode form of letters do not matter.

        Raises
        ------
        SchemeError
            If the scheme has no such class.
        """
        text, code = plain_name(str(key)), read_code(str(key))
        for i, c in enumerate(self.classes):
            if text == plain_name(c.name) or (code is not None and code in (c.code, *c.merge)):
                return i
        known = ", ".join(f"{c.code} {c.name}" for c in self.classes)
        msg = f"{key!r} is not a class of scheme {self.name!r}; it has: {known}"
        raise SchemeError(msg)

    def role_index(self, role: Role) -> int | None:
        """Return the position of the class with a role, or None."""
        return next((i for i, c in enumerate(self.classes) if c.role == role), None)

    def find_class(self, code: int, label_map: Mapping[int, int] | None = None) -> int | None:
        """Return the position of the class a code of a raster stands for, None if it is ignored.

        Parameters
        ----------
        code
            Code in the raster.
        label_map
            See :meth:`encode`.

        Returns
        -------
        int or None
            Position 0..C-1.

        Raises
        ------
        KeyError
            If the code is not a class, merged, mapped or ignored.
        """
        target = (label_map or {}).get(code, code)
        position = next((i for i, c in enumerate(self.classes) if target in (c.code, *c.merge)), None)
        if position is None and target not in self.ignored and target != MAP_NODATA:
            raise KeyError(code)
        return position

    def encode(
        self,
        labels: NDArray[np.integer],
        *,
        label_map: Mapping[int, int] | None = None,
        valid: NDArray[np.bool_] | None = None,
        where: str = "labels",
    ) -> NDArray[np.int16]:
        """Turn label codes into class positions.

        Parameters
        ----------
        labels
            Integer codes, any shape.
        label_map
            Codes of the labels -> codes of this scheme, applied first (``{10: 1, 20: 4}``). A code
            that is not listed keeps its meaning; map it to a code in ``ignored``, or to 255, to leave it out.
        valid
            Which pixels have data, of the same shape; the others are -1 whatever their codes. Without it
            all have. 255 also means no data, unless the map or the scheme lists it.
        where
            Name of the labels in error messages.

        Returns
        -------
        ndarray of int16
            Positions 0..C-1, and -1 where the code is ignored or there is no data.

        Raises
        ------
        SchemeError
            If a code is not a class, merged, mapped or ignored.
        """
        codes, inverse = np.unique(labels if valid is None else labels[valid], return_inverse=True)
        table = np.empty(codes.size, dtype=np.int16)
        unknown = []
        for i, code in enumerate(codes.tolist()):
            try:
                found = self.find_class(code, label_map)
            except KeyError:
                unknown.append(code)
                continue
            table[i] = IGNORED_INDEX if found is None else found
        if unknown:
            msg = (
                f"{where} has code(s) {', '.join(map(str, unknown))} that are not in scheme {self.name!r} "
                f"(it has {', '.join(map(str, self.codes.tolist()))}); "
                'map them with --label-map "CODE:CODE,..." or list them under merge or ignored in the scheme'
            )
            raise SchemeError(msg)
        if valid is None:
            return table[inverse].reshape(labels.shape)
        positions = np.full(labels.shape, IGNORED_INDEX, dtype=np.int16)
        positions[valid] = table[inverse].ravel()
        return positions

    def decode(self, positions: NDArray[np.integer], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
        """Turn class positions into codes; where ``valid`` is False the result is 255."""
        codes = self.codes[positions]
        return codes if valid is None else np.where(valid, codes, np.uint8(MAP_NODATA)).astype(np.uint8)

    def render(self, codes: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Colour an array of codes, shape (H, W), as RGBA, shape (H, W, 4); other codes are transparent."""
        table = np.zeros((256, 4), dtype=np.uint8)
        table[self.codes] = np.column_stack([self.colours, np.full(len(self), 255, np.uint8)])
        return table[np.asarray(codes, dtype=np.uint8)]

    def blend(self, probabilities: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Colour probabilities, shape (C, H, W), as the mean of the class colours, shape (H, W, 3).

        Pixels without data (NaN, or no mass) become white.
        """
        mass = np.nansum(probabilities, axis=0)
        share = np.nan_to_num(probabilities) / np.where(mass > 0, mass, 1)
        rgb = np.einsum("chw,ck->hwk", share, self.colours.astype(np.float32))
        rgb[~(mass > 0)] = 255
        return np.asarray(np.rint(rgb), dtype=np.uint8)


def load_scheme(name: str | Path) -> ClassScheme:
    """Load a class scheme.

    Parameters
    ----------
    name
        A shipped scheme (``"enviroatlas-5"``, ``"chesapeake-4"``, ``"nlcd"``), or the path of a YAML file.

    Returns
    -------
    ClassScheme
        The checked scheme.

    Raises
    ------
    MissingInputError, ConfigError
        If there is no such file or name.
    SchemeError
        If the file is not a valid scheme.
    """
    path = find_config(name, "schemes", (".yaml", ".yml"))
    try:
        return ClassScheme.model_validate(read_yaml(path))
    except ValidationError as error:
        raise SchemeError(explain(error, path)) from error
    except ConfigError as error:
        raise SchemeError(str(error)) from error


def parse_scheme(text: str, where: str | Path) -> ClassScheme:
    """Parse the class scheme in the tags of a file written by landprior.

    Raises
    ------
    SchemeError
        If it is damaged.
    """
    try:
        return ClassScheme.model_validate_json(text)
    except ValidationError as error:
        msg = f"the class scheme in its tags cannot be read: {explain(error, where)}; make the file again"
        raise SchemeError(msg) from error


def explain(error: ValidationError, where: str | Path) -> str:
    """Return pydantic's first error in one line, with its place and, for a YAML file, its line number."""
    found = error.errors()
    # a misspelt key is more helpful than the correct one missing
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    place = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in _SIMPLE and isinstance(first["input"], str | int | float | bool):
        message += f", not {first['input']!r}"
    line = _line_of(where, first["loc"])
    return f"{where}{'' if line is None else f', line {line}'}: {place + ': ' if place else ''}{message}{more}"


_SIMPLE = {"string_type", "int_type", "int_parsing", "int_from_float", "float_parsing", "bool_parsing",
           "string_pattern_mismatch", "literal_error", "greater_than", "greater_than_equal", "less_than",
           "less_than_equal"}  # fmt: skip
"""Types of errors whose message does not include the value."""


def _line_of(where: str | Path, place: tuple[int | str, ...]) -> int | None:
    if not isinstance(where, Path) or where.suffix.lower() not in (".yaml", ".yml"):
        return None
    try:
        return find_line(read_text(where), place)
    except InputError:
        return None


def parse_label_map(text: str) -> dict[int, int]:
    """Parse ``"10:1,20:2"`` into ``{10: 1, 20: 2}``.

    Raises
    ------
    InputError
        If the text is not in this form.
    """
    pairs: dict[int, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", part)
        if match is None:
            msg = f'{part!r} is not FROM:TO with two codes; write a label map like "10:1,20:2"'
            raise InputError(msg)
        source, target = int(match[1]), int(match[2])
        if source in pairs and pairs[source] != target:
            msg = f"the label map maps code {source} to both {pairs[source]} and {target}"
            raise InputError(msg)
        pairs[source] = target
    return pairs
