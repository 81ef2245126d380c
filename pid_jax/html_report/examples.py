"""The worst examples side by side: document, prompts, right answers, predictions."""

from collections.abc import Iterator

from pid_jax.html_report.markup import Markup, element, joined, table
from pid_jax.html_report.worst import Compared, ComparedExample, worst
from pid_jax.scoring import Evaluation

# What bounds the file, whatever is evaluated.
MOST_EXAMPLES = 20
MOST_PROMPTS = 40
MOST_REFERENCES = 5
DOCUMENT_CHARACTERS = 8_000
ID_CHARACTERS = 200
TEXT_CHARACTERS = 3_000
# Of all prompts, answers and predictions of an example, which share them evenly.
EXAMPLE_CHARACTERS = 60_000


def worst_examples(evaluation: Evaluation) -> Iterator[Markup]:
    """How they were chosen, and each one; one sentence where no prediction differs."""
    negative = evaluation.negative_target
    compared, total = worst(evaluation.examples, evaluation.answers, negative, most=MOST_EXAMPLES)
    if not compared:
        yield element("p", "Every prediction is a right answer, to the letter.")
        return
    empty = "" if negative is None else f' An empty prediction is taken for "{negative}".'
    yield element(
        "p",
        f"Of {len(evaluation.examples):,} examples {total:,} have a prediction that is, as a "
        f"text, none of the right answers. {len(compared):,} of them are shown. The first is the "
        "one whose predictions share the fewest words with the right answers (F1 as SQuAD has it, "
        "the nearest answer, mean over the example's prompts). Equal ones are in the order of the "
        f"lowest log-probability among such predictions.{empty} The task's score may count "
        "otherwise, by the rules above.",
    )
    for one in compared:
        yield _article(one)


def _article(compared: ComparedExample) -> Markup:
    example = compared.example
    shown = _prompts_to_show(compared)
    counts = f"{compared.differing:,} of {len(compared.subtasks):,} predictions differ"
    hidden = len(compared.subtasks) - len(shown)
    if hidden:
        differing = compared.differing - sum(one.differs for one in shown)
        counts += f"; {hidden:,} are not shown ({differing:,} of them differ)"
    document = element(
        "div",
        _cut(example.document, DOCUMENT_CHARACTERS),
        class_="document text",
        dir="auto",
        role="region",
        aria_label="document",
        tabindex="0",  # it scrolls, also by keyboard
    )
    return element(
        "article",
        element("h3", _cut(example.id, ID_CHARACTERS), dir="auto"),
        element("p", counts, class_="muted"),
        element("div", document, _table(shown), class_="pair"),
    )


def _prompts_to_show(compared: ComparedExample) -> list[Compared]:
    """Those that differ, and those that say something, in their order."""
    differing = [one for one in compared.subtasks if one.differs]
    telling = [
        one for one in compared.subtasks if not one.differs and one.said != one.negative_target
    ]
    shown = set(map(id, [*differing, *telling][:MOST_PROMPTS]))
    return [one for one in compared.subtasks if id(one) in shown]


def _table(shown: list[Compared]) -> Markup:
    columns = [("prompt", "text"), ("right", "text"), ("prediction", "text")]
    columns.append(("words shared", "number"))
    with_scores = any(one.answer.score is not None for one in shown)
    if with_scores:
        columns.append(("log-probability", "number"))
    texts = sum(2 + min(len(one.right), MOST_REFERENCES) for one in shown)
    most = min(TEXT_CHARACTERS, EXAMPLE_CHARACTERS // texts)
    rows = []
    for one in shown:
        prediction = _text(one.answer.text, most)
        if one.differs:
            prediction = element("span", "≠ ", prediction, class_="differs")
        prompt, right = _text(one.subtask.prompt, most), _right(one, most)
        cells = [prompt, right, prediction, f"{one.overlap:.2f}"]
        if with_scores:
            score = one.answer.score
            cells.append("" if score is None else f"{score:z.2f}")
        rows.append(cells)
    return table("≠: none of the right answers", columns, rows)


def _right(compared: Compared, most: int) -> Markup:
    parts = [_text(text, most) for text in compared.right[:MOST_REFERENCES]]
    if len(compared.right) > MOST_REFERENCES:
        more = f"{len(compared.right) - MOST_REFERENCES:,} more"
        parts.append(element("span", more, class_="muted"))
    return joined(parts, Markup(f"{element('span', ' or', class_='muted')}\n"))


def _text(text: str, most: int) -> Markup:
    if not text.strip():
        return element("span", "(empty)", class_="muted")
    return _cut(text, most)


def _cut(text: str, most: int) -> Markup:
    """The text, or its start and its end, and the length of the part between them."""
    if len(text) <= most:
        return joined([text])
    left_out = element("span", f" [{len(text) - most:,} characters] ", class_="muted")
    return joined([text[: most // 2], left_out, text[-(most // 2) :]])
