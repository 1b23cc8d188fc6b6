"""Evaluators: one file each. Benchmarks are in `evals/benchmarks/`."""
