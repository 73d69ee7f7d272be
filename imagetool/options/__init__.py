"""The arguments and options of each command, in functions that add them to its parser."""
