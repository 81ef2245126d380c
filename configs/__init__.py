"""Configurations of runs: each file has a `get_config()`, which train.py and eval.py read.

`--config` takes a file or a name, with an argument after a colon: `configs/multiwoz.py:21,t5_base`
or `multiwoz:21,t5_base`. The docstring of each file lists its arguments.
"""
