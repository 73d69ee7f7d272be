"""Options of a sandbox, as the command line and the Python API give them, to frozen values."""
