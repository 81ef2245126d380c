"""Checkpoints: reading and writing Hugging Face checkpoints and those of training runs."""
