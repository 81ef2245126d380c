"""Code that is tuned for a backend (CPU, GPU, TPU). Each tuned version has a reference version.

| file | tuned version | reference | the tuned version runs |
|---|---|---|---|
| `layouts.py` | the layout of keys and values | `ATTENDED_FIRST` | if `BackendSettings` names it |
| `decode_attention.py` | `attend_to_cache`, ... | `cache_attention_reference`, ... | on GPUs |
| `packed_attention.py` | `packed_attention` | `joint_attention` | on TPUs, without dropout |
| `cache_update.py` | `write_step` | `write_step_reference` | on GPUs |
| `token_selection.py` | `likeliest_with_logprob` | the same, `..._reference` | on GPUs |
| `matmul.py` | `matmul` | `matmul_reference` | on CPUs, with transposed kernels |
| `document_attention.py` | `document_attention` | `full_attention` | on GPUs and TPUs |
| `prompt_attention.py` | `prompt_attention` | `attend` without it | on GPUs and TPUs |
| `blockwise_attention.py` | `blockwise_attention` | `full_attention` | on CPUs |
| `local_attention.py` | `local_attention` | `local_attention_reference` | on every backend |
| `selection.py` | `largest`, `likeliest`, ... | `largest_reference`, ... | on every backend |

`settings.py` has the settings of each backend, including compiler options. `projections.py` has
the parameters that GPUs and TPUs decode with, `decode_kernels.py` the Pallas kernels of a GPU's
attention, `attention_kernels.py` those of a TPU, `kernel_shape.py` the sizes of the latter, and
`dropout.py` the dropout of attention weights. `scores.py` has the operations on scores that the
attention functions share. `tests/backends` compares each tuned version with its reference. Models
and decoding import from this package. It imports from neither.
"""
