"""Runs: each file has a `get_config()`, read by train.py and eval.py."""
