"""The page: scores, the tables that split them up, lengths, speed, the worst examples."""

from collections.abc import Iterable, Iterator, Mapping
from importlib import resources

import numpy as np
from jaxtyping import Int

from pid_jax.html_report import charts
from pid_jax.html_report.examples import worst_examples
from pid_jax.html_report.markup import Markup, element, joined, table
from pid_jax.scoring import Evaluation, figure, is_count, versions

MOST_ROWS = 100
"""A table has at most so many rows: there are tasks with hundreds of slots."""

_TITLE = ("task", "split")

# Should anything in a text ever be taken for markup, the browser still loads and runs nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(evaluation: Evaluation, about: Mapping[str, str]) -> str:
    """The whole file. `about` are facts by name: task and split make the title, others follow."""
    title = ", ".join(about[key] for key in _TITLE if key in about) or "Evaluation"
    style = resources.files("pid_jax.html_report").joinpath("style.css").read_text("utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title}: evaluation report"),
        element("style", Markup(style)),
    )
    sections = (
        _section("Scores", _scores(evaluation)),
        _section("Scores, split up", _tables(evaluation)),
        _section("Lengths", _lengths(evaluation)),
        _section("Speed and limits", _speed(evaluation)),
        _section("Worst examples", worst_examples(evaluation)),
        _section("Versions", [_facts(versions())]),
    )
    body = element("main", element("h1", title), _facts(_overview(evaluation, about)), *sections)
    return f"<!DOCTYPE html>\n{element('html', head, element('body', body), lang='en')}\n"


def _section(heading: str, parts: Iterable[Markup]) -> Markup:
    """Nothing, if it has no part."""
    content = joined(parts, "\n")
    return element("section", element("h2", heading), content) if content else content


def _facts(facts: Mapping[str, str]) -> Markup:
    rows = (
        joined([element("dt", name), element("dd", text, dir="auto")])
        for name, text in facts.items()
    )
    return element("dl", *rows)


def _overview(evaluation: Evaluation, about: Mapping[str, str]) -> dict[str, str]:
    prompts = sum(len(example.subtasks) for example in evaluation.examples)
    return {
        **{name: text for name, text in about.items() if name not in _TITLE},
        "documents": f"{len(evaluation.examples):,}",
        "prompts": f"{prompts:,}",
    }


def _scores(evaluation: Evaluation) -> Iterator[Markup]:
    baseline = evaluation.baseline
    yield _table(
        "All of the task's metrics",
        "metric",
        evaluation.report.metrics,
        {} if baseline is None else baseline.metrics,
        evaluation.negative_target,
    )
    if baseline is not None:
        yield element(
            "p",
            f'The tick in a bar is what always answering "{evaluation.negative_target}" scores.',
            class_="muted",
        )
    yield element("h3", "What these scores follow")
    yield _facts(evaluation.report.policy)


def _tables(evaluation: Evaluation) -> Iterator[Markup]:
    always = {} if evaluation.baseline is None else evaluation.baseline.tables
    tables = [
        _table(name, "part", values, always.get(name, {}), evaluation.negative_target)
        for name, values in evaluation.report.tables.items()
        if values
    ]
    if tables:
        yield element("div", *tables, class_="columns")


def _table(
    caption: str,
    heading: str,
    values: Mapping[str, float],
    baseline: Mapping[str, float],
    negative_target: str | None,
) -> Markup:
    """Names with their values, those of the baseline, and a bar for each."""
    shown = list(values)
    if len(shown) > MOST_ROWS:
        lowest = set(sorted(shown, key=values.__getitem__)[:MOST_ROWS])
        shown = [name for name in shown if name in lowest]
        caption += f": the {MOST_ROWS} lowest of {len(values):,} (metrics.json has all)"
    rates = [name for name in values if not is_count(name)]
    scale = charts.scale_of([of[name] for of in (values, baseline) for name in rates if name in of])
    columns = [(heading, "text"), ("score", "number")]
    if baseline:
        columns.append((f'always "{negative_target}"', "number"))
    if scale is not None:
        columns.append((f"0 to {scale:g}", "chart"))
    rows = []
    for name in shown:
        cells = [name, figure(name, values[name])]
        if baseline:
            cells.append(figure(name, baseline[name]) if name in baseline else "")
        if scale is not None:
            drawn = name in rates
            cells.append(charts.bar(values[name], scale, baseline.get(name)) if drawn else "")
        rows.append(cells)
    return table(caption, columns, rows)


def _lengths(evaluation: Evaluation) -> Iterator[Markup]:
    limits = {}
    if evaluation.run is not None:
        of_run = evaluation.run.truncation.limits
        limits = {
            "documents": of_run.document_tokens,
            "prompts": of_run.prompt_tokens,
            "targets": of_run.target_tokens,
        }
    unit = evaluation.lengths.unit
    figures = [
        _histogram(kind, values, unit, limits.get(kind))
        for kind, values in evaluation.lengths.of.items()
        if len(values)
    ]
    end_tokens = ", special and end tokens included" if unit == "tokens" else ""
    dashed = " A dashed line is the limit at which they are cut." if limits else ""
    yield element("p", f"In {unit}{end_tokens}.{dashed}", class_="muted")
    yield element("div", *figures, class_="columns")


def _histogram(
    kind: str, values: Int[np.ndarray, " texts"], unit: str, limit: int | None
) -> Markup:
    median, most = np.quantile(values, (0.5, 0.95), method="higher")
    text = (
        f"{len(values):,}, from {values.min():,} to {values.max():,} {unit}, median {median:,}, "
        f"95% up to {most:,}"
    )
    if limit is not None:
        text += f", {(values > limit).sum():,} over the limit of {limit:,}"
    drawn = charts.histogram(
        values,
        identifier=f"lengths-of-{kind}",
        title=f"Lengths of {kind}",
        description=text,
        unit=unit,
        limit=limit,
    )
    caption = element("figcaption", element("strong", kind.capitalize()), f": {text}")
    return element("figure", drawn, caption)


def _speed(evaluation: Evaluation) -> Iterator[Markup]:
    run = evaluation.run
    if run is None:
        yield element("p", "The predictions were made elsewhere: of how, nothing is known here.")
        return
    prompts = sum(len(row) for row in evaluation.answers) / len(evaluation.examples)
    yield _facts(
        {
            "method": {"pid": "prompt-in-decoder", "pie": "prompt-in-encoder"}[run.method],
            "device": run.device,
            "per document": f"{run.seconds_per_document:.4f} s (median over batches; "
            f"{prompts:.1f} prompts each on average)",
            "in all": f"{run.seconds:,.1f} s, compilation included",
            "truncation": str(run.truncation),
        }
    )
