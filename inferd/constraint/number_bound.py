"""NumberBound: JSON numbers end. The library's grammar of JSON lets a model write 1.0000 until its tokens run out."""

from __future__ import annotations

from inferd.constraint.vocabulary import NUMBER_BYTES, MatchVocabulary

MAX_CHARACTERS = 40  # an integer of 128 bits, or a double with all its digits and exponent, is shorter


class NumberBound:
    """Follows the text. Where it has ended in as many characters of a number, and the grammar lets the number end, the
    number ends: a longer one that the grammar demands, such as a constant, can still be written."""

    def __init__(self, vocabulary: MatchVocabulary, characters: int = 0) -> None:
        self._vocabulary = vocabulary
        self._characters = characters  # of a number, or of something that looks like one, at the end of the text

    def advance(self, token_id: int) -> None:
        text = self._vocabulary.token_bytes[token_id]
        at_end = len(text) - len(text.rstrip(NUMBER_BYTES))
        self._characters = at_end + (self._characters if at_end == len(text) else 0)

    def bounded(self, mask: bytes) -> bytes:
        """The mask without tokens that go on with a number that is long enough."""
        if self._characters < MAX_CHARACTERS:
            return mask
        known = self._vocabulary
        others = int.from_bytes(mask, "little") & ~known.number_tokens
        # Digits within a string or within free text are no number: there, more may follow, or no line break may.
        ends_a_number = others & known.no_string and not others & ~known.after_number
        return others.to_bytes(len(mask), "little") if ends_a_number else mask

    def fork(self) -> NumberBound:
        return NumberBound(self._vocabulary, self._characters)
