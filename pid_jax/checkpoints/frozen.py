"""Frozen parameters of a run, which it saves once.

`<workdir>/checkpoints/frozen/` has them, written with Orbax before the first checkpoint, with a
manifest. The checkpoints have the other parameters only. Their manifests name the digest of that
manifest, so that they are intact only with the parameters that they belong to.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from pid_jax.checkpoints import manifest, verification
from pid_jax.checkpoints.contents import CHECKPOINTS, FROZEN
from pid_jax.distributed import exchange

AVERAGED = "ema"
"""The name in a checkpoint of the average of the parameters, which has their paths."""
_SAVING = f".saving-{FROZEN}"


def save(workdir: Path, tree: Mapping[str, Any]) -> None:
    """Writes the frozen parameters of a run that has no checkpoint yet. An empty tree for none.

    Replaces those of an earlier start. All processes must call it, each writes its shares. Returns
    when the files are complete.
    """
    saving, final = (workdir.absolute() / CHECKPOINTS / name for name in (_SAVING, FROZEN))

    def clear() -> None:
        for directory in (saving, final):
            if directory.exists():
                shutil.rmtree(directory)

    def finish() -> None:
        manifest.write(saving, manifest.entries(saving))
        saving.rename(final)

    exchange.of_first(clear)
    if tree:
        ocp.save(saving, dict(tree))
        exchange.of_first(finish)


def restore(workdir: Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """The frozen parameters of a run.

    abstract: a tree of `jax.ShapeDtypeStruct` with shardings. Empty for a run without them.
    """
    return ocp.load(workdir.absolute() / CHECKPOINTS / FROZEN, dict(abstract)) if abstract else {}


def metadata(checkpoint: Path) -> Mapping[str, Any] | None:
    """The shapes and dtypes of the frozen parameters of a checkpoint. None if it has none."""
    if not verification.has_frozen(checkpoint):
        return None
    content: Mapping[str, Any] = ocp.metadata(checkpoint.with_name(FROZEN)).metadata
    return content
