"""Fixtures that several parts share."""

from tests.end_to_end.conftest import demo

__all__ = ["demo"]
