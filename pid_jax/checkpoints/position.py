"""The position of the data in a checkpoint: the number of the next batch.

It does not depend on the number of processes. `<checkpoint>/data/process_0-of-1.json` has it, as
Grain writes it for a single process, so that all versions of this project read it.
"""

import json
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pid_jax.distributed import service

DATA = "data"
_FILE = "process_0-of-1.json"


class Positioned(Protocol):
    """Data whose position can be saved and restored, such as a Grain iterator."""

    def get_state(self) -> Any:
        """The position, a JSON object."""

    def set_state(self, state: Any) -> None:
        """Goes to a position that `get_state` returned."""


class SavedPosition:
    """The present position of the data as Orbax saves it. The first process writes it."""

    def __init__(self, data: Positioned) -> None:
        self._content = json.dumps(data.get_state(), indent=4)

    async def save(self, directory: Any) -> Awaitable[None]:
        """Returns what Orbax runs in the background."""

        async def write() -> None:
            folder = await directory.await_creation()
            if service.is_first():
                (folder / _FILE).write_text(self._content)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        """Part of Orbax's protocol, which `restore` does not use: it reads the file itself."""
        raise NotImplementedError


def restore(checkpoint: Path, data: Positioned) -> None:
    """Goes to the position in a checkpoint."""
    content: Mapping[str, Any] = json.loads((checkpoint / DATA / _FILE).read_bytes())
    data.set_state(content)
