"""Rows out of files, tokens, corpora, and the hub they come from."""
