"""Additions to the tree: init, process, environment, certificates, owners, own files, slot."""
