"""Log-probabilities of single tokens against transformers, and why outputs ended."""

from typing import Any

import numpy as np
import pytest
import torch

from pid_jax.errors import UserError
from pid_jax.inference.model import PidModel
from pid_jax.inference.results import Generation
from tests.helpers import t5_checkpoints

LIMIT = 10
DOCUMENTS = [[3, 4, 5, 6, 7, 8, 9, 10, 11], [11, 2, 11, 2, 1]]
PROMPTS = [[[3, 4, 5], [9], []], [[8, 2, 3, 10], [6, 6]]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PidModel]:
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs = t5_checkpoints.make(directory)
    return theirs, PidModel.from_pretrained(directory)


def check(theirs: Any, document: list[int], prompt: list[int], one: Generation, top: int) -> None:
    """Against teacher forcing on the very tokens that were chosen."""
    assert one.logprobs is not None
    chosen = [item.token for item in one.logprobs]
    assert chosen[: len(one.tokens)] == one.tokens
    with torch.no_grad():
        logits = theirs(
            input_ids=torch.tensor([document]),
            decoder_input_ids=torch.tensor([[0, *prompt, *chosen[:-1]]]),
        ).logits[0, len(prompt) :]
    expected = torch.log_softmax(logits, -1).numpy()
    for place, item in zip(expected, one.logprobs, strict=True):
        assert item.logprob == pytest.approx(place[item.token], abs=1e-4)
        assert [token for token, _ in item.top] == np.argsort(-place)[:top].tolist()
        assert [value for _, value in item.top] == pytest.approx(
            np.sort(-place)[:top] * -1, abs=1e-4
        )
    assert sum(item.logprob for item in one.logprobs) == pytest.approx(one.score, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "seed": 3, "temperature": 2.0, "num_return_sequences": 2},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.5},
        {"draft_tokens": 3},
        {"repetition_penalty": 1.8, "compact": True},
        {"stop": [[7], [4, 5]], "num_beams": 2},
        {"allowed": [[[[5, 6], [7]], None, [[5]]], [None, [[9, 9, 9]]]]},
    ],
    ids=str,
)
def test_they_are_those_of_teacher_forcing_in_transformers(
    pair: tuple[Any, PidModel], options: dict[str, Any]
) -> None:
    theirs, model = pair
    answers = model.generate(DOCUMENTS, PROMPTS, LIMIT, logprobs=3, **options)
    plain = model.generate(DOCUMENTS, PROMPTS, LIMIT, **options)
    for i, row in enumerate(answers):
        for j, answer in enumerate(row):
            assert answer.tokens == plain[i][j].tokens
            assert plain[i][j].logprobs is None
            for one in (answer, *answer.alternatives):
                check(theirs, DOCUMENTS[i], PROMPTS[i][j], one, top=3)


def test_none_beside_the_chosen_one_and_more_than_there_are(pair: tuple[Any, PidModel]) -> None:
    theirs, model = pair
    for number, top in ((0, 0), (500, 12)):
        [[answer]] = model.generate(DOCUMENTS[:1], [[[9]]], LIMIT, logprobs=number)
        check(theirs, DOCUMENTS[0], [9], answer, top)


def test_streams_have_them_for_the_tokens_shown(pair: tuple[Any, PidModel]) -> None:
    _, model = pair
    answers = model.generate(DOCUMENTS, PROMPTS, LIMIT, logprobs=1)
    for partial in model.stream(DOCUMENTS, PROMPTS, LIMIT, logprobs=1):
        one, whole = partial.generation, answers[partial.document][partial.prompt]
        assert one.logprobs is not None
        assert whole.logprobs is not None
        assert len(one.logprobs) == (len(whole.logprobs) if partial.done else len(one.tokens))
        for ours, theirs in zip(one.logprobs, whole.logprobs, strict=False):
            assert ours.token == theirs.token
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert (one.finish_reason is None) == (not partial.done)


def test_outputs_say_whether_they_ended_or_were_cut(pair: tuple[Any, PidModel]) -> None:
    """The last token counted is the end token, or there are as many as were allowed."""
    _, model = pair
    seen = set()
    for options in ({}, {"num_beams": 3, "num_return_sequences": 3}, {"draft_tokens": 3}):
        for row in model.generate(DOCUMENTS, PROMPTS, LIMIT, logprobs=0, **options):
            for answer in row:
                for one in (answer, *answer.alternatives):
                    assert one.logprobs is not None
                    ended = one.logprobs[-1].token == t5_checkpoints.END
                    assert one.finish_reason == ("stop" if ended else "length")
                    assert ended or len(one.tokens) == LIMIT
                    seen.add(one.finish_reason)
    assert seen == {"stop", "length"}


def test_a_stop_at_the_limit_is_a_stop(text_model: PidModel) -> None:
    document, prompt = ["[user] a hotel in the north"], [["hotel-area"]]
    [[free]] = text_model.generate(document, prompt, max_new_tokens=6)
    assert free.finish_reason == "length"
    assert free.text
    for stop in ([free.text[-1]], [free.tokens[-1:]]):
        [[stopped]] = text_model.generate(document, prompt, max_new_tokens=6, stop=stop)
        assert stopped.finish_reason == "stop"


def test_counts_that_are_none_are_refused(varied_model: PidModel) -> None:
    with pytest.raises(UserError, match="logprobs must be at least 0, not -1"):
        varied_model.generate([[5]], [[[6]]], logprobs=-1)
