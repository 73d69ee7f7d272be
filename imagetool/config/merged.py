"""The table of an image over that of the defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from imagetool.config import schema
from imagetool.config.toml_lines import Where

T = TypeVar("T")


class Merged:
    """The keys of an image, and of `[defaults]` where the image does not have them."""

    def __init__(self, image: Where, defaults: Where | None) -> None:
        self._places = [place for place in (defaults, image) if place is not None]

    def get(self, key: str, parse: Callable[[Where], T], default: T) -> T:
        """Parse the image's value of `key`, else that of the defaults, else return `default`."""
        found = [place / key for place in self._places if key in place.table()]
        return parse(found[-1]) if found else default

    def table(self, key: str) -> dict[str, Where]:
        """Return the table `key` of defaults and image, merged by name.

        Raises:
            BadInput: It has a key that the schema does not know.
        """
        merged: dict[str, Where] = {}
        for place in self._places:
            if key in place.table():
                if key in schema.definitions():
                    (place / key).known(schema.keys(key))
                merged |= {name: place / key / name for name in (place / key).table()}
        return merged

    def items(self, key: str) -> list[Where]:
        """Return the items of the lists `key`, the defaults' first."""
        return [item for place in self._places if key in place.table() for item in (place / key).items()]
