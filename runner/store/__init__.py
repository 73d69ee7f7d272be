"""The store: verified content by digest, and how it gets there."""
