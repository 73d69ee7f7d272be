"""Parsers, one for each thing that users, hosts and images write: numbers of users, URLs, digests, PEM, files of variables."""
