"""Where a number in JSON has digits enough: weak models go on with zeros for ever if they may.

A schema cannot bound the digits behind a point, and the grammar library has no option for it.
"""

from typing import NamedTuple

MAX_DIGITS = 19  # of an int64; behind the point, two more than any float64 needs after its first
MAX_EXPONENT = 3  # of a float64


class Place(NamedTuple):
    """A place in JSON text. run: the digits right before it, outside of strings."""

    in_string: bool = False
    escaped: bool = False
    in_exponent: bool = False
    run: int = 0

    @property
    def is_full(self) -> bool:
        return self.run >= (MAX_EXPONENT if self.in_exponent else MAX_DIGITS)

    def after(self, text: bytes) -> "Place":
        """The place behind `text`, which may begin and end anywhere."""
        in_string, escaped, in_exponent, run = self
        for byte in text:
            if in_string:
                in_string = escaped or byte != ord('"')
                escaped = byte == ord("\\") and not escaped
            elif byte in b"0123456789":
                run += 1
            else:
                run, in_string = 0, byte == ord('"')
                in_exponent = byte in b"eE" or (in_exponent and byte in b"+-")
        return Place(in_string, escaped, in_exponent, run)
