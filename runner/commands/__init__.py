"""The commands of the runner. Only they print."""
