"""One module for parsers that are loaded together; each has TARGETS, named as in tests/fuzz/table.py."""
