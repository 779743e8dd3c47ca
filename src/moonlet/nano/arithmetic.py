"""Sums and differences of numbers up to three digits: the questions, the steps, the answer.

The steps are those of school arithmetic, from the right, with the result so far after each colon, so
that every token of them follows from a few earlier ones and a tiny model can be right nearly always:

    347+285                      285-347
    7+5=12: 2, carry 1           2<3: -(347-285)
    4+8+1=13: 32, carry 1        7-5=2: 2
    3+2+1=6: 632                 14-8=6: 62, borrow 1
                                 3-2-1=0: 062

With thinking on they are the reasoning; in instant mode a small sum is answered at once and a
larger one is worked out in the answer itself.
"""

import hashlib
import random
from dataclasses import dataclass

from moonlet.nano.phrases import section

LARGEST = 999
SMALL = 20  # both operands up to this: instant mode answers without steps
HELD_OUT_ONE_IN = 16


@dataclass(frozen=True)
class Sum:
    """`a` plus `b`, or `a` minus `b`."""

    a: int
    b: int
    minus: bool

    @property
    def result(self) -> int:
        return self.a - self.b if self.minus else self.a + self.b

    @property
    def is_small(self) -> bool:
        return max(self.a, self.b) <= SMALL

    @property
    def is_held_out(self) -> bool:
        """Whether the sum belongs to the test: a fixed sixteenth of those that are not small."""
        return not self.is_small and held_out(f"{self.a}{'-' if self.minus else '+'}{self.b}")

    @property
    def answer(self) -> str:
        return f"{self.a} {'-' if self.minus else '+'} {self.b} = {self.result}"


def held_out(text: str, one_in: int = HELD_OUT_ONE_IN) -> bool:
    """Whether `text` falls in the test share: decided by its hash, so the same on every machine."""
    return hashlib.sha256(text.encode()).digest()[0] % one_in == 0


def steps(question: Sum) -> str:
    """The worked solution, one line per digit (format in the module docstring)."""
    width = len(str(max(question.a, question.b)))
    a, b = str(question.a).zfill(width), str(question.b).zfill(width)
    if not question.minus:
        return "\n".join([f"{a}+{b}", *_addition(a, b)])
    compared, same = _comparison(a, b), a == b
    if same:
        return f"{a}-{b}\n{compared}: 0"
    larger, smaller = max(a, b), min(a, b)
    pair = f"-({larger}-{smaller})" if a < b else f"{larger}-{smaller}"
    return "\n".join([f"{a}-{b}", f"{compared}: {pair}", *_subtraction(larger, smaller)])


def _addition(a: str, b: str) -> list[str]:
    lines, carry, so_far = [], 0, ""
    for x, y in zip(reversed(a), reversed(b), strict=True):
        total = int(x) + int(y) + carry
        so_far = str(total % 10) + so_far
        line = f"{x}+{y}{'+1' if carry else ''}={total}: {so_far}"
        carry = total // 10
        lines.append(line + (", carry 1" if carry else ""))
    if carry:
        lines.append(f"1: 1{so_far}")
    return lines


def _subtraction(larger: str, smaller: str) -> list[str]:
    lines, borrow, so_far = [], 0, ""
    for x, y in zip(reversed(larger), reversed(smaller), strict=True):
        taken = int(y) + borrow
        top = int(x) + (10 if int(x) < taken else 0)
        so_far = str(top - taken) + so_far
        line = f"{top}-{y}{'-1' if borrow else ''}={top - taken}: {so_far}"
        borrow = int(top > 9)
        lines.append(line + (", borrow 1" if borrow else ""))
    return lines


def _comparison(a: str, b: str) -> str:
    """Digit by digit from the left up to the first difference: `3=3 4>1`."""
    signs = []
    for x, y in zip(a, b, strict=True):
        signs.append(f"{x}{'<' if x < y else '>' if x > y else '='}{y}")
        if x != y:
            break
    return " ".join(signs)


def draw_sum(rng: random.Random, small: bool = False) -> Sum:
    """A random sum. Short numbers, near pairs and repeated digits are commoner than by chance."""
    if small:
        return Sum(rng.randint(0, SMALL), rng.randint(0, SMALL), rng.random() < 0.5)
    a, b = _operand(rng), _operand(rng)
    if rng.random() < 0.15:  # near pairs: comparisons that are decided late, results near zero
        b = min(LARGEST, max(0, a + rng.randint(-12, 12)))
    return Sum(a, b, rng.random() < 0.5)


def _operand(rng: random.Random) -> int:
    digits = rng.choices((1, 2, 3), (1, 2, 5))[0]
    number = rng.randrange(10**digits)
    if rng.random() < 0.1:  # zeros and nines make the long carries and borrows
        number = int("".join(rng.choice("0099147") for _ in range(digits)))
    return number


def ask(question: Sum, language: str, rng: random.Random) -> str:
    """The bare question in words or signs, lower case, without closing punctuation."""
    phrases = section("minus" if question.minus else "plus")
    # Plain signs, the first six of the English list, are what people type most.
    known = phrases["en"][:6] if rng.random() < 0.25 else phrases[language]
    return rng.choice(known).format(a=question.a, b=question.b)
