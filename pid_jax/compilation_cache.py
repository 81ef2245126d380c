"""JAX's persistent compilation cache."""

import os
from pathlib import Path


def enable_compilation_cache() -> Path | None:
    """Enables JAX's persistent compilation cache, so that later processes reuse programs.

    The directory is $XDG_CACHE_HOME/pid_jax/jax (default ~/.cache/pid_jax/jax), unless another is
    configured or JAX_COMPILATION_CACHE_DIR is set. JAX reads that variable, and "" disables the
    cache. The cache includes programs that compile in less than a second, because decoding has
    many of them, unless JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS is set. Returns the directory,
    or None if this function set none.
    """
    import jax  # slow, so --help and errors in options do not import it

    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.values.get(
        "jax_compilation_cache_dir"
    ):
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = home / "pid_jax" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory
