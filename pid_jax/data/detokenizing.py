"""From token ids to text: which of an output's tokens are text, and how it is put together."""

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

_NAMED = ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id")


class Joint(NamedTuple):
    """How an added token stands between the texts around it."""

    restarts: bool
    """The text after it is encoded, and decoded, as if it began there. Tokenizers that put a
    space before a text (`train_tokenizer`) put it before every piece between added tokens."""
    spaced: bool
    """A space stands before it that the tokenizer drops when it encodes (T5)."""


class Detokenizer:
    """Reads token ids of one model as text, exactly as it was encoded where that is possible.

    Left out are control tokens: those of the model's configuration, the tokenizer's padding, end,
    beginning and unknown tokens, what it puts around every document, and the language codes of
    mBART. Every other token is text, whether or not it is marked as special: a separator that a
    user added, T5's sentinels. Spaces are neither cleaned up nor stripped.
    """

    def __init__(self, tokenizer: Any, control_token_ids: Iterable[int]) -> None:
        """control_token_ids: those of the model's configuration."""
        self.tokenizer = tokenizer
        self.control = _control_tokens(tokenizer) | frozenset(control_token_ids)
        self.joints: dict[int, Joint] = self._find_joints()
        """The added tokens that do not simply follow the text before them."""

    def text(self, tokens: Iterable[int]) -> str:
        """The text of the tokens."""
        kept = [token for token in tokens if token not in self.control]
        if self.joints.keys().isdisjoint(kept):
            return self._decoded(kept)
        parts, start = [], 0
        for place, token in enumerate(kept):
            joint = self.joints.get(token)
            if joint is None:
                continue
            parts.append(self._decoded(kept[start:place]))
            start = place
            if joint.spaced and place > 0:
                parts.append(" ")
            if joint.restarts:
                parts.append(self._decoded([token]))
                start = place + 1
        return "".join([*parts, self._decoded(kept[start:])])

    def _decoded(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        text: str = self.tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _find_joints(self) -> dict[int, Joint]:
        """By trial: how a text with an added token comes back, one of each kind of token."""
        self.joints = {}
        kinds: dict[tuple[bool, ...], list[int]] = {}
        for token, added in getattr(self.tokenizer, "added_tokens_decoder", {}).items():
            if token not in self.control:
                flags = added.special, added.normalized, added.lstrip, added.rstrip
                kinds.setdefault((*flags, added.single_word), []).append(token)
        found: dict[int, Joint] = {}
        word = self._some_word() if kinds else ""
        for tokens in kinds.values():
            joints = (self._joint_of(token, word) for token in tokens[:4])
            joint = next(filter(None, joints), _SIMPLE)
            if any(joint):
                found.update(dict.fromkeys(tokens, joint))
        return found

    def _some_word(self) -> str:
        """A text that comes back."""
        of_tokens = (self._decoded([token]).strip() for token in range(len(self.tokenizer)))
        words = chain(["a"], islice(filter(str.isalpha, of_tokens), _WORDS_TRIED))
        return next((word for word in words if self.text(self._encoded(word)) == word), "a")

    def _encoded(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _joint_of(self, token: int, word: str) -> Joint | None:
        """None where nothing brings the text back."""
        text = f"{word} {self.tokenizer.convert_ids_to_tokens(token).strip()} {word}"
        ids = self._encoded(text)
        try:
            for joint in _SIMPLE, Joint(True, False), Joint(False, True), Joint(True, True):
                self.joints = {token: joint} if any(joint) else {}
                if self.text(ids) == text:
                    return joint
            return None
        finally:
            self.joints = {}


_WORDS_TRIED = 100
_SIMPLE = Joint(restarts=False, spaced=False)


def _control_tokens(tokenizer: Any) -> frozenset[int]:
    named = {getattr(tokenizer, name, None) for name in _NAMED}
    bare, whole = (
        tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True)
    )
    languages = (getattr(tokenizer, "lang_code_to_id", None) or {}).values()
    return frozenset({*named, *(set(whole) - set(bare)), *languages} - {None})
