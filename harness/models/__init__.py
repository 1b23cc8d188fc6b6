"""Which models there are: cards, checkpoints, models trained on the spot, updates, memory."""
