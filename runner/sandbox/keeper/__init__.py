"""The keeper of a sandbox: the process that starts its machine, serves its clients, and says how it ended."""
