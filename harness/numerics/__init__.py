"""What is computed with a model: likelihoods, training, generation; how checkpoints are loaded."""
