"""Examples whose texts are numbers, a tokenizer for them, and their batches."""

import itertools

import numpy as np

from pid_jax.data.examples import Example, Subtask
from pid_jax.data.pipeline import evaluation_batches, iterated, training_stream
from pid_jax.data.tokenizing import Limits, TokenizedExample, TokenizedExamples

PAD, END, START = 0, 1, 2
NONE = [99, END]
WIDE = Limits(document_tokens=1000, prompt_tokens=10, target_tokens=10)


class NumberTokenizer:
    """Texts are numbers between spaces, and each is its own token; any other word is 9.
    Appends END to documents."""

    def __call__(self, texts, *, add_special_tokens, **options):
        end = [END] if add_special_tokens else []
        words = [text.split() for text in texts]
        return {
            "input_ids": [
                [int(word) if word.isdigit() else 9 for word in row] + end for row in words
            ]
        }

    def decode(self, token_ids, **options):
        return " ".join(map(str, token_ids))

    def save_pretrained(self, save_directory, **options):
        raise NotImplementedError


def source_of(lengths, subtasks, negatives=0, limits=WIDE):
    """Example n starts with 1000 + n; its subtask s asks 100 + s and is answered 200 + s,
    but the last `negatives` are answered 99."""
    examples = [
        Example(
            id=str(number),
            document=" ".join([str(1000 + number)] + ["5"] * (length - 1)),
            subtasks=tuple(
                Subtask(
                    id=str(subtask),
                    prompt=f"{100 + subtask}",
                    target="99" if subtask >= subtasks - negatives else f"{200 + subtask}",
                )
                for subtask in range(subtasks)
            ),
        )
        for number, length in enumerate(lengths)
    ]
    return TokenizedExamples(examples, NumberTokenizer(), limits, end_token_id=END)


def lengths_of(count, longest=150):
    return np.random.default_rng(7).integers(1, longest, count).tolist()


def training(source, **options):
    options = {"batch_size": 4, "seed": 3, **options}
    reading = {"threads": options.pop("threads", 0), "prefetch": options.pop("prefetch", 4)}
    stream = training_stream(source, pad_token_id=PAD, decoder_start_token_id=START, **options)
    return iterated(stream, **reading)


def evaluation(source, **options):
    return evaluation_batches(
        source, pad_token_id=PAD, decoder_start_token_id=START, **{"batch_size": 4, **options}
    )


def take(batches, count):
    return list(itertools.islice(batches, count))


def numbers(batch):
    """Which examples stand in the batch, by the first token of their documents."""
    return [int(row[0]) - 1000 for row, mask in zip(*batch[:2], strict=True) if mask.any()]


def pairs(batch, row):
    """(prompt, target) in a row's present slots, start token gone."""
    return [
        (prompt[prompt_mask].tolist()[1:], target[target_mask].tolist())
        for prompt, prompt_mask, target, target_mask in zip(
            *(values[row] for values in batch[2:]), strict=True
        )
        if target_mask.any()
    ]


def prompt_before_document(examples):
    """What the prompt-in-encoder baseline does: one document per prompt."""
    return [
        TokenizedExample(example.id, [*prompt, *example.document], [[]], [target])
        for example in examples
        for prompt, target in zip(example.prompts, example.targets, strict=True)
    ]
