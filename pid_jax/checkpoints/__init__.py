"""Weights on disk: Hugging Face checkpoints both ways, and the checkpoints of training runs."""
