"""Data pipeline: text examples to fixed-shape batches of tokens, for any task and model."""
