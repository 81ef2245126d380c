"""One call of `generate`, compared prompt by prompt with plain greedy and with transformers."""

import dataclasses
import gc
from collections import Counter
from collections.abc import Iterator

import jax
import numpy as np

from pid_jax.inference.results import Generation
from tests.fuzz import pairs, plain, theirs, watchdog
from tests.fuzz.cases import Case, Tokens
from tests.fuzz.pairs import Pair
from tests.fuzz.plain import Fault, Request

SECONDS = 180
"""What a call may take, compilation included, on a busy machine."""
COMPARED = 3
"""Prompts of a call that transformers answers, too."""
NOISE = 2e-5
ATTEMPTS = 12
"""Of as many reruns with noise, one that gives our beams shows that a tie decided."""
SCORE_TOLERANCE = 2e-3


@dataclasses.dataclass
class Tally:
    """What came of the cases."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    faults: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        rows = [f"{count:8,} {name}" for name, count in self.counts.items()]
        return "\n".join([*rows, f"{len(self.faults):8,} faults"])


def forget() -> None:
    """Drops all models and their programs. Six models take six times the memory of one."""
    pairs.of.cache_clear()
    plain.program.cache_clear()
    gc.collect()
    jax.clear_caches()


def check(case: Case, tally: Tally, seconds: int = SECONDS) -> None:
    """Runs a case and adds to the tally what came of it."""
    tally.counts["calls"] += 1
    pair = pairs.of(case.kind.pair)
    try:
        with watchdog.limit(seconds):
            generations = pair.ours.generate(case.documents, case.prompts, **case.options)
            if case.every is not None:
                _check_stream(case, pair, generations, tally)
        compared = _compared(case)
        for i, j in _positions(case):
            request = _request(case, pair, i, j)
            where = f"prompts[{i}][{j}]"
            _check_prompt(request, generations[i][j], (i, j) in compared, where, tally)
    except Fault as fault:
        tally.faults.append(f"{fault}\n  {case}")
    except watchdog.Hang as hang:
        tally.faults.append(f"HANG: {hang}\n  {case}")
    except Exception as error:  # whatever it is, the other cases go on
        tally.faults.append(f"{type(error).__name__}: {error}\n  {case}")


def _positions(case: Case) -> Iterator[tuple[int, int]]:
    for i, row in enumerate(case.prompts):
        for j in range(len(row)):
            yield i, j


def _compared(case: Case) -> set[tuple[int, int]]:
    positions = list(_positions(case))
    random = np.random.default_rng(case.number)
    count = min(COMPARED, len(positions))
    return {positions[k] for k in random.choice(len(positions), count, replace=False)}


def _request(case: Case, pair: Pair, i: int, j: int) -> Request:
    document, prompt = case.documents[i], case.prompts[i][j]
    if case.options["method"] == "pie":
        document, prompt = [*prompt, *document], []
    allowed = case.options.get("allowed")
    return Request(pair, document, prompt, case.options, None if allowed is None else allowed[i][j])


def _check_prompt(
    request: Request, generation: Generation, compared: bool, where: str, tally: Tally
) -> None:
    tally.counts["prompts"] += 1
    outputs = [generation, *generation.alternatives]
    try:
        if request.options.get("num_beams", 1) == 1:
            _check_greedy(request, generation, compared, tally)
        else:
            outputs = [output for output in outputs if output.score > theirs.FILLER]
            for output in outputs:
                _check_score(request, output)
            if compared and theirs.can_answer(request):
                _check_beams(request, outputs, tally)
    except Fault as fault:
        raise Fault(f"{where}: {fault}") from None


def _check_greedy(request: Request, generation: Generation, compared: bool, tally: Tally) -> None:
    expected = plain.greedy(request, generation.tokens)
    if expected.tokens != generation.tokens:
        if not expected.ties:
            raise Fault(f"plain greedy gives {expected.tokens}, generate {generation.tokens}")
        tally.counts["prompts that differ from plain greedy by an exact tie"] += 1
        return
    if abs(expected.score - generation.score) > SCORE_TOLERANCE:
        raise Fault(f"score {generation.score}, but log-probabilities sum to {expected.score}")
    tally.counts["prompts equal to plain greedy"] += 1
    if not (compared and theirs.can_answer(request)):
        return
    [answer] = theirs.generate(request)
    if answer.tokens == generation.tokens:
        tally.counts["prompts equal to transformers' greedy"] += 1
    elif expected.ties:
        tally.counts["prompts that differ from transformers' greedy by an exact tie"] += 1
    elif theirs.masks(request, [answer.tokens, generation.tokens]):
        tally.counts["prompts with padding, which transformers' T5Gemma masks"] += 1
    else:
        raise Fault(f"transformers gives {answer.tokens}, generate {generation.tokens}")


def _check_beams(request: Request, outputs: list[Generation], tally: Tally) -> None:
    found = [output.tokens for output in outputs]

    def answer(noise: theirs.Noise | None = None) -> list[Tokens]:
        return [one.tokens for one in theirs.generate(request, noise) if one.rank > theirs.FILLER]

    everything = theirs.generate(request)
    expected = [one.tokens for one in everything if one.rank > theirs.FILLER]
    filler = len(everything) > len(expected)
    if found == expected:
        name = "prompts equal to transformers' beams"
        tally.counts[f"{name}, but for its fillers" if filler else name] += 1
    elif any(found == answer(theirs.Noise(seed, NOISE)) for seed in range(ATTEMPTS)):
        tally.counts["prompts that differ from transformers' beams by an exact tie"] += 1
    elif _fillers_ended_it(request, outputs):
        tally.counts["prompts with beams that transformers' fillers hide from it"] += 1
    elif theirs.masks(request, [*found, *(one.tokens for one in everything)]):
        tally.counts["prompts with padding, which transformers' T5Gemma masks"] += 1
    else:
        raise Fault(f"transformers' beams are {everything}, ours {outputs}")


def _fillers_ended_it(request: Request, outputs: list[Generation]) -> bool:
    """Whether transformers' search ended with fillers before it found what is better."""
    beams = request.options["num_beams"]
    everything = theirs.generate(
        request._replace(options={**request.options, "num_return_sequences": beams})
    )
    best = outputs[0]
    length = len(best.tokens) + (best.finish_reason == "stop")
    rank = best.score / max(length, 1) ** request.options.get("length_penalty", 1.0)
    return everything[-1].rank < theirs.FILLER and rank >= everything[0].rank - SCORE_TOLERANCE


def _check_score(request: Request, output: Generation) -> None:
    """An output ends by an end token, a stop sequence that was cut off, or its length."""
    ways = [[end] for end in request.ends] + [[]]
    ways += [list(stop) for stop in request.options.get("stop", ())]
    rows = [[*output.tokens, *way] for way in ways]
    sums = []
    for row in rows:
        logits = plain.logits(request.pair, request.document, [*request.start, *row])
        logits = logits[len(request.start) - 1 :]
        sums.append(sum(plain.log_probability(logits[i], token) for i, token in enumerate(row)))
    if min(abs(total - output.score) for total in sums) > SCORE_TOLERANCE:
        raise Fault(f"{output} has log-probabilities that sum to one of {sums}")


def _check_stream(
    case: Case, pair: Pair, generations: list[list[Generation]], tally: Tally
) -> None:
    options = {name: value for name, value in case.options.items() if name != "compact"}
    done: dict[tuple[int, int], Generation] = {}
    for partial in pair.ours.stream(case.documents, case.prompts, every=case.every, **options):
        place = partial.document, partial.prompt
        final = generations[place[0]][place[1]].tokens
        if place in done:
            raise Fault(f"stream yields {place} again after it is done")
        if partial.generation.tokens != final[: len(partial.generation.tokens)]:
            raise Fault(f"stream yields {partial} of {final}")
        if partial.done:
            done[place] = partial.generation
    finals = {place: generations[place[0]][place[1]].tokens for place in _positions(case)}
    if {place: one.tokens for place, one in done.items()} != finals:
        raise Fault(f"stream ends with {done}, generate gives {finals}")
    tally.counts["streams equal to generate"] += 1
