"""Ways to choose tokens, over documents and prompts at once."""
