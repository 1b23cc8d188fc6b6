"""Evaluators: one file each, or one folder. Benchmarks are in `evals/benchmarks/`."""
