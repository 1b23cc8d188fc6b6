"""Figures and tables: one file each, from records alone."""
