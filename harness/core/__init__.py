"""What things are: methods, benchmarks, evaluators, metrics and figures, and what passes between them. No torch."""
