"""What is tuned for a backend (CPU, GPU, TPU), each beside the plain version that it replaces.

| file | tuned | plain | where the tuned version runs |
|---|---|---|---|
| `layouts.py` | the layout of keys and values | `ATTENDED_FIRST` | by `choices.chosen().layout` |
| `products.py` | `multiply` | `multiply_plainly` | on a CPU, where parameters have transposes |
| `documents.py` | `attend_by_blocks` | `attend_at_once` | everywhere, blocks by platform |
| `neighbours.py` | `attend_nearby` | `attend_nearby_at_once` | everywhere, blocks by platform |
| `selection.py` | `largest`, `likeliest`, ... | `largest_plainly`, ... | everywhere |

`choices.py` is the table of what each backend takes, XLA's options among it. `scores.py` is what
the versions of attention share. `tests/backends` compares each pair. Models and decoding import
from this package. It imports from neither.
"""
