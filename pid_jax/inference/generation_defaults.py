"""A checkpoint's `generation_config.json` as defaults of `GenerationOptions`.

As in transformers, the values of a checkpoint apply wherever a caller gives none. Three things
differ.

Lengths: transformers counts the whole decoder input in `max_length` and `min_length`. Here prompts
of any length are in the decoder, and an answer may be as long as after an empty prompt:
`max_new_tokens = max_length - 1` (for the start token), and the minimum likewise. A file without
either gives the defaults of this package, not the 20 of transformers. Where the decoder has fewer
positions, the length is reduced to what the longest prompt of a call leaves.

Conflicts: a value of the file that excludes one of the caller, such as `num_beams` with
`draft_tokens`, is ignored, and a line in the log says so. The log also names what is not supported.

Impossible values, such as a temperature of 0, are an error only where they would have an effect.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pid_jax.checkpoints import generation_config
from pid_jax.checkpoints.generation_config import CHANGING_OUTPUTS, FILE, HONOURED, LENGTHS
from pid_jax.decoding.options import (
    DEFAULTS,
    PROCESSOR_OPTIONS,
    SAMPLING_OPTIONS,
    CheckpointOptions,
    GenerationOptions,
    read_option,
)
from pid_jax.errors import UserError
from pid_jax.models.protocol import Config

log = logging.getLogger(__name__)

_KEYS = tuple(dict.fromkeys((*HONOURED, *PROCESSOR_OPTIONS)))
"""The keys of a file that set an option."""
_WHOLE = (*LENGTHS, *(name for name, value in DEFAULTS.items() if type(value) is int))
_FLAGS = tuple(name for name, value in DEFAULTS.items() if type(value) is bool)
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
_SHAPES_OUTPUTS = ("num_beams", "do_sample")
"""Options without which a checkpoint's outputs are others than in transformers."""


class GenerationDefaults:
    """The options that a checkpoint sets, and how they combine with those of a caller."""

    def __init__(
        self,
        content: Mapping[str, Any],
        config: Config,
        *,
        has_tokenizer: bool = True,
        quiet: bool = False,
    ) -> None:
        """content: of a `generation_config.json`. Logs which of its keys are not honoured.

        quiet: logs nothing, then or later.
        """
        self._config = config
        self._quiet = quiet
        self._said: set[str] = set()
        self._impossible: dict[str, tuple[Any, str]] = {}
        """Values that cannot be, by our names, and why."""
        self.options: Mapping[str, Any] = self._translated(content, has_tokenizer)
        """What the file sets to something else than this package's default, by our names."""
        self._name_the_rest(content)

    def options_with(
        self,
        given: Mapping[str, Any],
        *,
        streamed: bool = False,
        constrained: bool = False,
    ) -> GenerationOptions:
        """The options of a call. A caller's None counts as not given.

        streamed: for outputs that are shown as they grow, which beams are not. constrained:
        for outputs some of which are of closed lists: the file's least length does not count
        there. Logs at INFO what is taken from the file, at WARNING what has to be left out of
        that and changes outputs. Raises `UserError` for an unknown option, for given ones that do
        not fit, and naming the key of a value of the file that would have an effect and cannot be.
        """
        unknown = sorted(given.keys() - DEFAULTS.keys())
        if unknown:
            raise UserError(
                f"unknown option {', '.join(unknown)}; known: {', '.join(sorted(DEFAULTS))}"
            )
        given = {name: read_option(name, v) for name, v in given.items() if v is not None}
        taken = {name: value for name, value in self.options.items() if name not in given}
        impossible = {n: why for n, why in self._impossible.items() if n not in given}
        of_file = taken | dict.fromkeys(impossible)
        left_out = _incompatible(given, of_file, streamed)
        for name, (_, why) in impossible.items():
            if name not in left_out:
                raise UserError(why)
        for name in left_out:
            taken.pop(name, None)
        most = given.get("max_new_tokens", taken.get("max_new_tokens", DEFAULTS["max_new_tokens"]))
        if taken.get("min_new_tokens", 0) > most:
            taken["min_new_tokens"] = most  # as in transformers, where then nothing ends before
        if taken:
            self._say(logging.INFO, f"from {FILE}: {_listed(taken)}")
        for name, why in left_out.items():
            level = logging.WARNING if name in _SHAPES_OUTPUTS else logging.INFO
            value = impossible[name][0] if name in impossible else self.options[name]
            self._say(level, f"{name}={value} of {FILE} is left out: {why}")
        if constrained and "min_new_tokens" in taken:
            self._say(
                logging.INFO, f"min_new_tokens of {FILE} is left out where outputs have lists"
            )
        return CheckpointOptions(**taken | given, of_checkpoint=frozenset(taken))

    def _translated(self, content: Mapping[str, Any], has_tokenizer: bool) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for key in _KEYS:
            if content.get(key) is None:
                continue
            value = _plain(key, content[key])
            name = "stop" if key == "stop_strings" else key
            try:
                options[name] = read_option("max_new_tokens" if key in LENGTHS else name, value)
            except UserError as error:
                self._impossible[name] = value, f'{FILE}: "{key}": {error}'
        for limit in ("max", "min"):
            wrong = self._impossible.pop(f"{limit}_length", None)
            if wrong is not None and f"{limit}_new_tokens" not in options:
                self._impossible.setdefault(f"{limit}_new_tokens", wrong)
            length = options.pop(f"{limit}_length", None)
            if length is not None:
                lowest = 1 if limit == "max" else 0
                options.setdefault(f"{limit}_new_tokens", max(length - 1, lowest))
        if options.get("do_sample") and "top_k" not in {**options, **self._impossible}:
            options["top_k"] = 50  # transformers' default
        if options.get("stop") and not has_tokenizer:
            self._say(logging.WARNING, f"stop_strings of {FILE} need a tokenizer: left out")
            del options["stop"]
        most = self._config.max_decoder_tokens
        if most is not None and options.get("max_new_tokens", 0) > most:
            options["max_new_tokens"] = most
        for name in _SUPPRESSED:
            if name in options:  # transformers looks for tokens among these, so others do no harm
                options[name] = tuple(t for t in options[name] if t < self._config.vocab_size)
        options = {name: value for name, value in options.items() if value != DEFAULTS[name]}
        for name, value in options.items():
            try:
                check_alone(name, value)
            except UserError as error:
                self._impossible[name] = value, f"{FILE}: {error}"
        return {name: value for name, value in options.items() if name not in self._impossible}

    def _name_the_rest(self, content: Mapping[str, Any]) -> None:
        known = {*generation_config.ABOUT_ITSELF, *generation_config.OF_CONFIG, *_KEYS}
        rest = {key: value for key, value in content.items() if key not in known}
        unsupported, without_effect = {}, {}
        for key, value in rest.items():
            if key in generation_config.WITHOUT_EFFECT:
                without_effect[key] = value
            elif value is not None and value not in CHANGING_OUTPUTS.get(key, ()):
                unsupported[key] = value
        if unsupported:
            self._say(logging.WARNING, f"{FILE}: not supported here: {_listed(unsupported)}")
        if without_effect:
            self._say(logging.INFO, f"{FILE}: without effect here: {_listed(without_effect)}")

    def _say(self, level: int, line: str) -> None:
        """Once."""
        if not self._quiet and line not in self._said:
            self._said.add(line)
            log.log(level, line)


def _incompatible(
    given: Mapping[str, Any], taken: Mapping[str, Any], streamed: bool
) -> dict[str, str]:
    """Which of the taken options have to go, and why."""
    left_out: dict[str, str] = {}

    def has(name: str) -> Any:
        return given.get(name, DEFAULTS[name] if name in left_out else taken.get(name))

    def leave_out(why: str, *names: str) -> None:
        left_out.update({name: why for name in names if name in taken and name not in left_out})

    if streamed:
        leave_out("a stream has one growing output", "num_beams", "num_return_sequences")
    if given.get("draft_tokens"):
        leave_out("draft_tokens is for greedy decoding", "num_beams", "do_sample")
    if has("do_sample") and (has("num_beams") or 1) > 1:
        if "num_beams" in taken:
            leave_out("beams do not go with do_sample=True", "num_beams")
        else:
            leave_out("sampling does not go with num_beams > 1", "do_sample")
    if not has("do_sample"):
        leave_out("it has an effect only with do_sample=True", *SAMPLING_OPTIONS)
        if (has("num_return_sequences") or 1) > (has("num_beams") or 1):
            leave_out("there are fewer beams", "num_return_sequences")
    if (has("num_beams") or 1) == 1:
        leave_out("it has an effect only with num_beams > 1", "length_penalty", "early_stopping")
    return left_out


def _plain(key: str, value: Any) -> Any:
    """What transformers takes for a value too: 2.0 for 2, 0 for False, one text for a list of it.

    Negative ids are left out of suppressed ones: transformers finds no token of theirs.
    """
    if key in _WHOLE and type(value) is float and value.is_integer():
        return int(value)
    if key in _FLAGS and type(value) in (int, float) and value in (0, 1):
        return bool(value)
    if key in _SUPPRESSED and isinstance(value, list | tuple):
        return [token for token in value if not (type(token) is int and token < 0)]
    if key == "stop_strings" and type(value) is str:
        return [value]
    return value


def check_alone(name: str, value: Any) -> None:
    """Raises `UserError` for an option's value that does not fit, whatever the other options."""
    needed: dict[str, Any] = {}
    if name in SAMPLING_OPTIONS:
        needed = {"do_sample": True}
    elif name in ("length_penalty", "early_stopping"):
        needed = {"num_beams": 2}
    elif name == "num_return_sequences":
        needed = {"num_beams": max(value, 1)}
    elif name == "min_new_tokens":
        needed = {"max_new_tokens": max(value, 1)}
    elif name == "draft_ngram":
        needed = {"draft_tokens": 1}
    GenerationOptions(**{name: value}, **needed)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_shortened(value)}" for name, value in values.items())


def _shortened(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 4:
        return f"({len(value)} of them)"
    return repr(value)
