"""A world of made-up people: unique names, six attributes each, biographies and questions about them.

The construction is bioS of Allen-Zhu & Li, "Physics of Language Models: Part 3.1, Knowledge Storage and Extraction"
(arXiv 2309.14316, section 2): attributes are drawn independently and uniformly, except that the city of work is where
the employer sits; a biography is one sentence per attribute, each from one of several paraphrases. Names of people,
places and companies are built from syllables, so that nothing in them can be known from elsewhere.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator

ATTRIBUTES = ("birth_date", "birth_city", "university", "major", "employer", "work_city")
FIRST_YEAR = 1900
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
DAYS = 28  # every month has these

# {S} is the person at the start of a sentence (full name, or He / She), {s} inside one; {P} and {p} are the possessive.
SENTENCES: dict[str, tuple[str, ...]] = {
    "birth_date": (
        "{S} was born on {value}.",
        "{P} date of birth is {value}.",
        "It was on {value} that {s} came into the world.",
        "{P} life began on {value}.",
        "Every year {s} counts another birthday from {value}.",
        "The calendar read {value} on the day of {p} birth.",
        "{S} first saw daylight on {value}.",
        "Records give {value} as {p} birthday.",
    ),
    "birth_city": (
        "{S} was born in {value}.",
        "{P} birthplace is {value}.",
        "{S} comes from {value}, the town of {p} birth.",
        "The family was living in {value} when {s} was born.",
        "{S} spent the first days of life in {value}.",
        "{P} native town is {value}.",
        "A hospital in {value} is where {s} was born.",
        "{S} calls {value} home, having been born there.",
    ),
    "university": (
        "{S} studied at {value}.",
        "{S} is a graduate of {value}.",
        "{P} years as a student were spent at {value}.",
        "{S} holds a degree from {value}.",
        "For higher education {s} went to {value}.",
        "{P} alma mater is {value}.",
        "{S} attended lectures at {value} until graduation.",
        "It was {value} that awarded {p} diploma.",
    ),
    "major": (
        "{S} majored in {value}.",
        "{P} field of study was {value}.",
        "{S} took a degree in {value}.",
        "The subject that {s} chose was {value}.",
        "{S} concentrated on {value} as a student.",
        "{P} diploma is in {value}.",
        "{S} was trained in {value}.",
        "Among all subjects {s} settled on {value}.",
    ),
    "employer": (
        "{S} works for {value}.",
        "{P} employer is {value}.",
        "{S} has a position at {value}.",
        "The company that pays {p} salary is {value}.",
        "{S} was hired by {value}.",
        "{S} built a career at {value}.",
        "On the staff list of {value} one finds {s}.",
        "{S} earns a living with {value}.",
    ),
    "work_city": (
        "{S} works in {value}.",
        "{P} place of work is {value}.",
        "{P} office stands in {value}.",
        "The job took {s_object} to {value}.",
        "On working days {s} can be met in {value}.",
        "{S} commutes to an office in {value}.",
        "{P} desk is in {value}.",
        "Work keeps {s_object} in {value}.",
    ),
}
PARAPHRASES = min(len(sentences) for sentences in SENTENCES.values())

QUESTIONS = {
    "birth_date": "What is the birth date of {name}?",
    "birth_city": "In which city was {name} born?",
    "university": "At which university did {name} study?",
    "major": "What was the major of {name}?",
    "employer": "Which company does {name} work for?",
    "work_city": "In which city does {name} work?",
}

FIELDS = (
    "Accounting", "Acoustics", "Agronomy", "Anthropology", "Archaeology", "Architecture", "Astronomy", "Biology",
    "Botany", "Chemistry", "Dance", "Economics", "Education", "Epidemiology", "Ethics", "Finance", "Forestry",
    "Genetics", "Geography", "Geology", "History", "Journalism", "Law", "Linguistics", "Logic", "Logistics",
    "Mathematics", "Medicine", "Meteorology", "Music", "Nursing", "Optics", "Painting", "Pharmacy", "Philosophy",
    "Physics", "Psychology", "Robotics", "Sculpture", "Sociology", "Statistics", "Surveying", "Theatre", "Zoology",
)  # fmt: skip
BRANCHES = ("", "Applied ", "Comparative ", "Experimental ", "Historical ", "Theoretical ")
MAJORS = len(FIELDS) * len(BRANCHES)
SCHOOLS = ("University of {}", "{} University", "{} College", "{} Institute of Technology")
COMPANIES = ("{} Systems", "{} Foods", "{} Energy", "{} Logistics", "{} Motors", "{} Textiles", "{} Pharma")
TOWNS = ("{}", "Port {}", "{} Falls", "New {}", "{} Springs")

ONSETS = ("b", "br", "c", "d", "dr", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "tr", "v", "w")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
CODAS = ("", "l", "n", "r", "s", "m", "t", "nd", "rk")
ENDINGS = {
    "first": ("a", "o", "en", "is", "ia"),
    "middle": ("el", "an", "ine", "or"),
    "last": ("son", "er", "by", "ley"),
}
WORDS = len(ONSETS) * len(VOWELS) * len(CODAS)  # distinct first syllables


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many different values there are of each kind; `birth_years` years start at 1900."""

    first_names: int
    middle_names: int
    last_names: int
    birth_years: int
    cities: int
    universities: int
    majors: int
    employers: int


@dataclass(frozen=True, kw_only=True)
class World:
    """`names[i]` and `values[attribute][i]` belong to person i; `female[i]` decides the pronoun."""

    names: Sequence[str]
    values: dict[str, Sequence[str]]
    female: Sequence[bool]


def make_world(people: int, sizes: Sizes, rng: "Generator") -> World:
    """Draw `people` people with different full names; there must be that many names."""
    possible = sizes.first_names * sizes.middle_names * sizes.last_names
    assert possible >= people, "bios.Spec checks this"
    first = _words(sizes.first_names, rng, ENDINGS["first"])
    middle = _words(sizes.middle_names, rng, ENDINGS["middle"])
    last = _words(sizes.last_names, rng, ENDINGS["last"])
    picks = rng.choice(possible, size=people, replace=False)
    names = [
        f"{first[i % len(first)]} {middle[i // len(first) % len(middle)]} {last[i // len(first) // len(middle)]}"
        for i in picks.tolist()
    ]
    return World(names=names, values=_draw_values(people, sizes, rng), female=(rng.random(people) < 0.5).tolist())


def _draw_values(people: int, sizes: Sizes, rng: "Generator") -> dict[str, Sequence[str]]:
    cities = _places(sizes.cities, rng, TOWNS)
    seats = rng.integers(sizes.cities, size=sizes.employers)  # the city of each employer
    majors = [branch + field for branch in BRANCHES for field in FIELDS][: sizes.majors]
    employer = rng.integers(sizes.employers, size=people)

    def draw(pool: Sequence[str]) -> list[str]:
        return [pool[i] for i in rng.integers(len(pool), size=people).tolist()]

    years, months, days = (rng.integers(n, size=people).tolist() for n in (sizes.birth_years, len(MONTHS), DAYS))
    return {
        "birth_date": [f"{MONTHS[m]} {d + 1}, {FIRST_YEAR + y}" for y, m, d in zip(years, months, days, strict=True)],
        "birth_city": draw(cities),
        "university": draw(_places(sizes.universities, rng, SCHOOLS)),
        "major": draw(majors),
        "employer": _take(_places(sizes.employers, rng, COMPANIES), employer),
        "work_city": _take(cities, seats[employer]),
    }


def _take(pool: Sequence[str], indices: "ndarray") -> list[str]:
    return [pool[i] for i in indices.tolist()]


def _words(count: int, rng: "Generator", endings: Sequence[str]) -> list[str]:
    """`count` different capitalized words of two or more syllables: first as many as there are, then longer ones."""
    found: dict[str, None] = {}
    for middles in itertools.count(0):
        space = WORDS * len(endings) * WORDS**middles
        for index in rng.choice(space, size=min(space, 2 * count), replace=False).tolist():
            index, ending = divmod(index, len(endings))
            word = ""
            for _ in range(middles + 1):
                index, syllable = divmod(index, WORDS)
                word += _syllable(syllable)
            found[(word + endings[ending]).capitalize()] = None
            if len(found) == count:
                return list(found)
    raise AssertionError("itertools.count ended")


def _syllable(index: int) -> str:
    index, onset = divmod(index, len(ONSETS))
    coda, vowel = divmod(index, len(VOWELS))
    return ONSETS[onset] + VOWELS[vowel] + CODAS[coda]


def _places(count: int, rng: "Generator", patterns: Sequence[str]) -> list[str]:
    """`count` different names, the patterns in turn over different words."""
    words = _words(count, rng, ("a", "on", "ia", "ek", "ora", "um"))
    return [patterns[i % len(patterns)].format(word) for i, word in enumerate(words)]


def biography(world: World, person: int, paraphrase: Sequence[int], order: Sequence[int], full_name: bool) -> str:
    """One biography: attribute `order[k]` is told by its sentence number `paraphrase[k]`.

    The first sentence has the full name; the others have a pronoun unless `full_name`.
    """
    name, she = world.names[person], world.female[person]
    named = {"S": name, "s": name, "P": f"{name}'s", "p": f"{name}'s", "s_object": name}
    pronouns = dict(zip(named, ("She", "she", "Her", "her", "her") if she else ("He", "he", "His", "his", "him")))
    sentences: list[str] = []
    for k, number in zip(order, paraphrase, strict=True):
        attribute = ATTRIBUTES[k]
        words = named if full_name or not sentences else pronouns
        sentences.append(SENTENCES[attribute][number].format(**words, value=world.values[attribute][person]))
    return " ".join(sentences)


def question(world: World, person: int, attribute: str) -> str:
    """A prompt that the completion ` <value>` answers. It does not end in a space: models answer that with nothing."""
    return f"Question: {QUESTIONS[attribute].format(name=world.names[person])}\nAnswer:"
