"""Training: configuration, optimizer, step, loop. `train.py` is the command."""
