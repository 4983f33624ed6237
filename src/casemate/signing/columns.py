"""Columns of a dataset's schema: what each record must hold, whatever format carries it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast, get_args

from casemate.signing import fields
from casemate.signing.strict_json import invalid

ColumnType: TypeAlias = Literal["integer", "number", "text", "boolean", "bytes", "timestamp", "vector", "json"]
"""What a value means.

`integer` has 64 bits, `number` is finite, `bytes` is base64 where the format is text, `timestamp` is a moment
(RFC 3339 with an offset in text), `vector` is a list of finite numbers without gaps, `json` any JSON value: written as
itself in JSON Lines, as text elsewhere.
"""

MAXIMUM_CATEGORIES: Final = 1000
MAXIMUM_CATEGORY_CHARACTERS: Final = 256

_BOUNDED: Final = frozenset({"integer", "number", "vector"})
_INTEGERS: Final = ("int64", "int32", "int16", "int8", "uint32", "uint16", "uint8")
_FLOATS: Final = ("float64", "float32")
STORAGES: Final[dict[str, tuple[str, ...]]] = {"integer": _INTEGERS, "number": _FLOATS, "vector": _FLOATS + _INTEGERS}
"""Widths that Arrow may keep a type in; the first is meant where none is named."""

_REQUIRED: Final = frozenset({"name", "type", "minimum", "maximum"})
_OPTIONAL: Final = frozenset({"nullable", "categories", "storage"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        name: unique within the schema.
        type: what its values mean.
        minimum: the least value allowed, of a vector the least element; integers, numbers and vectors only.
        maximum: the greatest, likewise.
        nullable: whether a record may leave it empty: null, in CSV nothing between two commas.
        categories: the only texts allowed; None for any.
        storage: Arrow's width of an integer, a number or an element; Arrow only.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`.
    """

    name: str
    type: ColumnType
    minimum: float | None = None
    maximum: float | None = None
    nullable: bool = False
    categories: tuple[str, ...] | None = None
    storage: str | None = None

    def __post_init__(self) -> None:
        fields.text(self.name, "schema.name", fields.COLUMN_NAME)
        if self.type not in get_args(ColumnType):
            raise invalid("schema.type", f"is not one of {', '.join(get_args(ColumnType))}")
        if not isinstance(self.nullable, bool):
            raise invalid("schema.nullable", "is not true or false")
        if self.storage is not None and self.storage not in STORAGES.get(self.type, ()):
            raise invalid("schema.storage", "is not a width of this type")
        self._check_bounds()
        self._check_categories()

    def _check_bounds(self) -> None:
        bounds = [bound for bound in (self.minimum, self.maximum) if bound is not None]
        if bounds and self.type not in _BOUNDED:
            raise invalid("schema.minimum", f"is set on {self.type}")
        for bound in bounds:
            if self.type == "integer":
                fields.integer(bound, "schema.minimum", minimum=-fields.MAXIMUM_INTEGER)
            fields.number(bound, "schema.minimum")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise invalid("schema.minimum", "is above the maximum")

    def _check_categories(self) -> None:
        if self.categories is None:
            return
        if self.type != "text" or not isinstance(self.categories, tuple):
            raise invalid("schema.categories", "is set on something other than text")
        fields.count(self.categories, "schema.categories", minimum=1, maximum=MAXIMUM_CATEGORIES)
        for category in self.categories:
            if not isinstance(category, str) or len(category) > MAXIMUM_CATEGORY_CHARACTERS or "\x00" in category:
                raise invalid("schema.categories", "holds something other than short texts")
        if len(set(self.categories)) != len(self.categories):
            raise invalid("schema.categories", "names a text twice")

    def to_json(self) -> dict[str, object]:
        """As it stands in a statement. What was not said is left out, so that older manifests keep their digests."""
        said: dict[str, object] = {
            "name": self.name,
            "type": self.type,
            "minimum": self.minimum,
            "maximum": self.maximum,
        }
        if self.nullable:
            said["nullable"] = True
        if self.categories is not None:
            said["categories"] = list(self.categories)
        if self.storage is not None:
            said["storage"] = self.storage
        return said

    @classmethod
    def from_json(cls, item: object) -> Column:
        """The column that `to_json` wrote, or that somebody else did.

        Raises:
            InvalidRequest: `MANIFEST_INVALID`.
        """
        present = item.keys() & _OPTIONAL if isinstance(item, dict) else frozenset()
        column = fields.members(item, "schema", _REQUIRED | present)
        categories = column.get("categories")
        return cls(
            # The casts are checked by the constructor, which trusts no type.
            name=cast("str", column["name"]),
            type=cast("ColumnType", column["type"]),
            minimum=cast("float | None", column["minimum"]),
            maximum=cast("float | None", column["maximum"]),
            nullable=cast("bool", column.get("nullable", False)),
            categories=None if categories is None else cast("tuple[str, ...]", tuple(_texts(categories))),
            storage=cast("str | None", column.get("storage")),
        )


def _texts(value: object) -> list[object]:
    return fields.array(value, "schema.categories")
