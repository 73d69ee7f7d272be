"""Signatures, what they say, and the policy that decides whether they are enough. No file or registry is read here."""
