"""From examples in text to fixed-shape batches of tokens. Knows no task and no model."""
