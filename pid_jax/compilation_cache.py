"""Where compiled programs are kept between processes."""

import os
from pathlib import Path


def keep_compiled_programs() -> Path | None:
    """Turns on JAX's persistent compilation cache: a later process does not compile again.

    In $XDG_CACHE_HOME/pid_jax/jax (by default ~/.cache/pid_jax/jax), unless a directory was
    already configured or JAX_COMPILATION_CACHE_DIR is set: JAX itself reads that, and "" turns
    the cache off. Programs that compile in less than a second are kept too, unless
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS says otherwise: decoding has many such programs.
    Returns the directory, or None if this function set none.
    """
    import jax  # not before it is needed: --help and a mistaken option should not wait for it

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
