"""The network of a sandbox without a network card: its connections go through the keeper, which decides about each."""
