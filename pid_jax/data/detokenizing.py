"""Detokenizer: decodes output tokens to exactly the text that the tokenizer encoded."""

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

_NAMED = ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id")


class Joint(NamedTuple):
    """How an added token joins the text around it."""

    restarts: bool
    """The tokenizer treats the text after the token as a new text. Tokenizers that prepend a
    space to a text (`train_tokenizer`) prepend it to every piece between added tokens."""
    spaced: bool
    """Encoding drops the space before the token (T5), so decoding inserts one."""


class Detokenizer:
    """Decodes token ids of one model, where possible to exactly the text that was encoded.

    Decoding omits control tokens: those of the model's configuration, the tokenizer's padding,
    end, start and unknown tokens, the special tokens around a document, and mBART's language
    codes. All other tokens are text, including tokens marked as special, such as a separator that
    a user added or T5's sentinels. Spaces are neither cleaned up nor stripped.
    """

    def __init__(self, tokenizer: Any, control_token_ids: Iterable[int]) -> None:
        """control_token_ids: the control tokens of the model's configuration."""
        self.tokenizer = tokenizer
        self.control = _control_tokens(tokenizer) | frozenset(control_token_ids)
        self.joints: dict[int, Joint] = self._find_joints()
        """Joints of the added tokens that need more than concatenation."""

    def text(self, tokens: Iterable[int]) -> str:
        """The text of the tokens, without control tokens."""
        content = [token for token in tokens if token not in self.control]
        if self.joints.keys().isdisjoint(content):
            return self._decoded(content)
        parts, start = [], 0
        for index, token in enumerate(content):
            joint = self.joints.get(token)
            if joint is None:
                continue
            parts.append(self._decoded(content[start:index]))
            start = index
            if joint.spaced and index > 0:
                parts.append(" ")
            if joint.restarts:
                parts.append(self._decoded([token]))
                start = index + 1
        return "".join([*parts, self._decoded(content[start:])])

    def _decoded(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        text: str = self.tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _find_joints(self) -> dict[int, Joint]:
        """Finds the joints by encoding and decoding a text with a token of each kind."""
        self.joints = {}
        kinds: dict[tuple[bool, ...], list[int]] = {}
        for token, added in getattr(self.tokenizer, "added_tokens_decoder", {}).items():
            if token not in self.control:
                flags = added.special, added.normalized, added.lstrip, added.rstrip
                kinds.setdefault((*flags, added.single_word), []).append(token)
        joints_of_tokens: dict[int, Joint] = {}
        word = self._some_word() if kinds else ""
        for tokens in kinds.values():
            joints = (self._joint_of(token, word) for token in tokens[:4])
            joint = next(filter(None, joints), _SIMPLE)
            if any(joint):
                joints_of_tokens.update(dict.fromkeys(tokens, joint))
        return joints_of_tokens

    def _some_word(self) -> str:
        """A word that decodes to itself."""
        of_tokens = (self._decoded([token]).strip() for token in range(len(self.tokenizer)))
        words = chain(["a"], islice(filter(str.isalpha, of_tokens), _WORDS_TRIED))
        return next((word for word in words if self.text(self._encoded(word)) == word), "a")

    def _encoded(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _joint_of(self, token: int, word: str) -> Joint | None:
        """The first joint that restores a text with the token, or None."""
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
