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


# Ways to ask. {a} and {b} are the operands; in the swapped ones {b} comes first in the sentence.
PLUS_EN = """
{a} + {b}|{a}+{b}|{a}+{b}=|{a} + {b} =|{a}+{b}=?|{a} + {b} = ?|{a} +{b}|{a}+ {b}|{a} plus {b}|{a} plus {b} equals
what is {a} + {b}|what is {a}+{b}|what's {a} + {b}|what is {a} plus {b}|what's {a} plus {b}|whats {a}+{b}
how much is {a} + {b}|how much is {a} plus {b}|how much is {a}+{b}|what does {a} + {b} equal|what do you get for {a} + {b}
add {a} and {b}|add {a} to {b}|add {a} + {b}|sum {a} and {b}|the sum of {a} and {b}|what is the sum of {a} and {b}
calculate {a} + {b}|calculate {a}+{b}|compute {a} + {b}|compute {a} plus {b}|solve {a} + {b}|work out {a} + {b}|find {a} + {b}
can you add {a} and {b}|can you compute {a} + {b}|could you tell me what {a} + {b} is|tell me {a} plus {b}|i need {a} + {b}
give me {a} + {b}|do you know what {a} + {b} is|{a} and {b} together, how much is that|let's do {a} + {b}|now {a} + {b}|and {a} + {b}
"""
PLUS_PT = """
quanto é {a} + {b}|quanto e {a} + {b}|quanto é {a}+{b}|quanto e {a} mais {b}|quanto é {a} mais {b}|{a} mais {b}
{a} mais {b} é quanto|{a} mais {b} dá quanto|quanto dá {a} + {b}|quanto dá {a} mais {b}|quanto são {a} mais {b}|quanto fica {a} + {b}
qual é a soma de {a} e {b}|qual é a soma de {a} com {b}|a soma de {a} e {b}|some {a} e {b}|soma {a} e {b}|soma {a} com {b}
calcule {a} + {b}|calcula {a} + {b}|calcula {a} mais {b}|calcule {a}+{b}|resolve {a} + {b}|faz a conta {a} + {b}|faça a conta {a} + {b}
podes somar {a} e {b}|você pode somar {a} e {b}|pode calcular {a} + {b}|diz-me quanto é {a} + {b}|me diga quanto é {a} + {b}
adicione {a} a {b}|adiciona {a} e {b}|qual é o resultado de {a} + {b}|qual o resultado de {a} mais {b}|agora {a} + {b}|e {a} mais {b}
"""
MINUS_EN = """
{a} - {b}|{a}-{b}|{a}-{b}=|{a} - {b} =|{a}-{b}=?|{a} - {b} = ?|{a} -{b}|{a}- {b}|{a} minus {b}|{a} minus {b} equals|{a} − {b}
what is {a} - {b}|what is {a}-{b}|what's {a} - {b}|what is {a} minus {b}|what's {a} minus {b}|whats {a}-{b}|what is {a} − {b}
how much is {a} - {b}|how much is {a} minus {b}|how much is {a}-{b}|what does {a} - {b} equal|what do you get for {a} - {b}
subtract {b} from {a}|take {b} from {a}|take {b} away from {a}|what is left of {a} without {b}|{a} take away {b}
the difference of {a} and {b}|what is the difference of {a} and {b}|what is {a} less {b}|{a} less {b}
calculate {a} - {b}|calculate {a}-{b}|compute {a} - {b}|compute {a} minus {b}|solve {a} - {b}|work out {a} - {b}|find {a} - {b}
can you subtract {b} from {a}|can you compute {a} - {b}|could you tell me what {a} - {b} is|tell me {a} minus {b}|i need {a} - {b}
give me {a} - {b}|do you know what {a} - {b} is|let's do {a} - {b}|now {a} - {b}|and {a} - {b}|now subtract {b} from {a}
"""
MINUS_PT = """
quanto é {a} - {b}|quanto e {a} - {b}|quanto é {a}-{b}|quanto e {a} menos {b}|quanto é {a} menos {b}|{a} menos {b}
{a} menos {b} é quanto|{a} menos {b} dá quanto|quanto dá {a} - {b}|quanto dá {a} menos {b}|quanto são {a} menos {b}|quanto fica {a} - {b}
qual é a diferença de {a} e {b}|a diferença de {a} e {b}|subtraia {b} de {a}|subtrai {b} de {a}|subtrai {b} a {a}|tira {b} de {a}|tire {b} de {a}
calcule {a} - {b}|calcula {a} - {b}|calcula {a} menos {b}|calcule {a}-{b}|resolve {a} - {b}|faz a conta {a} - {b}|faça a conta {a} - {b}
podes subtrair {b} de {a}|você pode subtrair {b} de {a}|pode calcular {a} - {b}|diz-me quanto é {a} - {b}|me diga quanto é {a} - {b}
retire {b} de {a}|qual é o resultado de {a} - {b}|qual o resultado de {a} menos {b}|agora {a} - {b}|e {a} menos {b}|agora tira {b} de {a}
"""


def _phrases(block: str) -> tuple[str, ...]:
    return tuple(phrase for line in block.split("\n") for phrase in line.split("|") if phrase)


PHRASES = {
    ("en", False): _phrases(PLUS_EN),
    ("pt", False): _phrases(PLUS_PT),
    ("en", True): _phrases(MINUS_EN),
    ("pt", True): _phrases(MINUS_PT),
}


def ask(question: Sum, language: str, rng: random.Random) -> str:
    """The bare question in words or signs, lower case, without closing punctuation."""
    phrase = rng.choice(PHRASES[language, question.minus])
    if rng.random() < 0.25:  # plain signs are what people type most
        phrase = rng.choice(PHRASES["en", question.minus][:6])
    return phrase.format(a=question.a, b=question.b)
