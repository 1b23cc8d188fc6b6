"""A small kernel that knows what a method, a benchmark, an evaluator and a figure are, and runs them."""

__version__ = "0.1.0"
