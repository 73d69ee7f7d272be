"""JSON schemas as an independent validator reads them.

jsonschema is loaded when it is used: that takes three seconds, which a process that only collects tests does not have to spend.
"""

from __future__ import annotations

from typing import Any


def complaint(value: object, schema: Any) -> str:
    """What is wrong with `value`; "" if nothing is."""
    import jsonschema

    validator = jsonschema.Draft7Validator(schema)
    return next((f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)), "")


def check(schema: Any) -> None:
    """Fail if it is not a schema."""
    import jsonschema

    jsonschema.Draft7Validator.check_schema(schema)
