"""What a load consists of: prompts of random English words, lengths, arrivals, cancels, slow readers. Seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec

WORDS_TEXT = """
able about above across action after again against age air all almost alone along already also always among
animal answer any apple area arm around arrive art ask autumn away baby back ball bank base bear beautiful
because become bed before began behind believe below beside best better between big bird black blue board boat
body book born both bottom box boy branch bread break bridge bright bring brother brown build burn busy buy call
came camp capital captain car care carry case castle catch cause center chair chance change chief child choose
church circle city class clean clear climb clock close cloth cloud coast cold color come common complete contain
cook cool copy corn corner cost count country course cover cross crowd cry cup current cut dance danger dark
daughter day dead deal deep desert design determine develop difference dinner direct discover distance divide
doctor dog door double down draw dream dress drink drive drop dry during each early earth ease east eat edge
effect egg eight electric end enemy energy engine enough enter equal evening event ever every exact example
except excite exercise expect experience experiment eye face fact fair fall family famous farm fast father favor
fear feed feel fell field fig fight figure fill final find fine finger finish fire first fish fit five floor
flow flower fly follow food foot force forest forget form forward found four free fresh friend front fruit full
fun game garden gas gather gave general gentle girl give glad glass gold gone good govern grand grass great
green grew ground group grow guess guide hair half hand happen happy hard harvest hat head hear heart heat heavy
height help high hill history hold hole home hope horse hot hour house huge human hundred hunt hurry ice idea
imagine inch include industry insect instant instrument interest invent iron island job join joy jump just keep
key kind king kitchen knew know lady lake land language large last late laugh law lead leaf learn least leave
left length less letter level lie life lift light like line liquid list listen little live locate log lone long
look lost loud love low machine magnet main major make man many map mark market master match material matter may
mean measure meat meet melody metal method middle might mile milk million mind mine minute miss mix modern
molecule moment money month moon morning mother motion mount mountain mouth move much multiply music name nation
nature near necessary neck need neighbor never new next night nine noise noon north nose note nothing notice
noun number object observe occur ocean offer office often old once open opposite orange order organ original
other over own oxygen page paint pair paper paragraph parent part party pass past path pattern pay people
perhaps period person phrase picture piece pitch place plain plan plane planet plant play
"""


MAX_LENGTH = 2**31 - 1


class Lengths(msgspec.Struct, frozen=True):
    """A uniform length, low to high inclusive: `128` or `64-256`."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Raises ValueError when `text` is neither N nor N-M with 1 <= N <= M <= MAX_LENGTH."""
        low, _, high = text.partition("-")
        lengths = cls(int(low), int(high or low))
        if not 1 <= lengths.low <= lengths.high <= MAX_LENGTH:
            raise ValueError(f"length {text!r} is not N or N-M with 1 <= N <= M <= {MAX_LENGTH}")
        return lengths

    def draw(self, source: random.Random) -> int:
        return source.randint(self.low, self.high)


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """rate None: closed loop of `concurrency` callers; else open loop, Poisson arrivals per second."""

    num_requests: int = 32
    concurrency: int = 1
    rate: float | None = None
    prompt_words: Lengths = Lengths(128, 128)
    output_tokens: Lengths = Lengths(128, 128)
    prefix_words: int = 0  # shared by all prompts
    cancel_fraction: float = 0.0  # cancelled at a random token
    slow_fraction: float = 0.0  # these callers pause between reads
    slow_pause_s: float = 0.2
    temperature: float = 0.0
    seed: int = 0


class Item(msgspec.Struct, frozen=True):
    """One request to send. arrival_s is from the start of the run (open loop only)."""

    index: int
    prompt: str
    output_tokens: int
    arrival_s: float
    cancel_after: int | None
    pause_s: float


def items(workload: Workload) -> Iterator[Item]:
    """The requests of a workload; the same seed gives the same ones."""
    source = random.Random(workload.seed)
    vocabulary = WORDS_TEXT.split()
    prefix = " ".join(source.choices(vocabulary, k=workload.prefix_words))
    arrival = 0.0
    for index in range(workload.num_requests):
        words = " ".join(source.choices(vocabulary, k=workload.prompt_words.draw(source)))
        length = workload.output_tokens.draw(source)
        cancelled = source.random() < workload.cancel_fraction
        slow = source.random() < workload.slow_fraction
        if workload.rate is not None:
            arrival += source.expovariate(workload.rate)
        yield Item(
            index,
            f"{prefix} {words}" if prefix else words,
            length,
            arrival,
            source.randint(1, length) if cancelled else None,
            workload.slow_pause_s if slow else 0.0,
        )
