"""Every parser of foreign bytes under a fuzzer: tests/fuzz/table.py lists the targets, tests/fuzz/README.md says how to use them."""
