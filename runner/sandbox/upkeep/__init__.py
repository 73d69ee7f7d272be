"""Removing and repairing what the store has, without harm to sandboxes that use it."""
