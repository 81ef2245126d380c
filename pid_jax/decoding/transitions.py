"""What the automata of patterns have in common: paths through transitions, and a limit of size."""

import numpy as np
from jaxtyping import Int

from pid_jax.errors import UserError

NEVER = 1 << 30
"""More steps than any path has."""
MOST_CELLS = 1 << 26


def neighbours(
    first: Int[np.ndarray, " nodes1"], nodes: Int[np.ndarray, " some"]
) -> tuple[Int[np.ndarray, " edges"], Int[np.ndarray, " edges"]]:
    """Index into `nodes` and edge, for each edge `first[node]` up to `first[node + 1]`."""
    counts = first[nodes + 1] - first[nodes]
    index = np.repeat(np.arange(len(nodes)), counts)
    edge = np.arange(len(index)) + np.repeat(first[nodes] - (np.cumsum(counts) - counts), counts)
    return index, edge


def distances(
    source: Int[np.ndarray, " edges"],
    target: Int[np.ndarray, " edges"],
    starts: Int[np.ndarray, " starts"],
    states: int,
) -> Int[np.ndarray, " states"]:
    """The fewest edges from any of the starts to each state, breadth first; `NEVER` without one."""
    order = np.argsort(source, kind="stable")
    first = np.searchsorted(source[order], np.arange(states + 1))
    distance = np.full(states, NEVER, np.int32)
    distance[starts] = 0
    steps = 0
    while len(starts):
        steps += 1
        reached = np.unique(target[order[neighbours(first, starts)[1]]])
        starts = reached[distance[reached] == NEVER]
        distance[starts] = steps
    return distance


def check_size(cells: int, most: int | None = None) -> None:
    """Raises `UserError` for a table of more cells than `most`, by default `MOST_CELLS`."""
    most = MOST_CELLS if most is None else most
    if cells > most:
        raise UserError(
            f"a pattern needs a table of {cells} cells, and {most} are the most: lower the numbers "
            "of repetitions, such as {0,500} or maxLength, or leave them unlimited"
        )
