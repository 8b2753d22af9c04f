"""Rows of little made-up tasks in the fields of a published data set, so that a study of it runs in miniature anywhere:
`toys` with `like: mnli` makes the files that `dataset: mnli` reads.

People have, give and lose things of some colour. Every answer follows from the text by a rule, so a small model can
learn the task, and rules are shared between tasks as they are between the real ones.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from toolkit.data.splits import Splits
from toolkit.lookup import unknown
from toolkit.stage import Context

PEOPLE = "Anna Otto Mina Hugo Vera Emil Lena Karl Ines Paul Nora Ivan Ruth Max Olga Leo Tess Jan Eva Tom".split()
THINGS = "cup book lamp coat ring drum boat kite key hat bell clock".split()
COLOURS = "red blue green black white yellow brown grey".split()
PLACES = "kitchen garden harbour tower cellar market".split()
SIZES = {"train": 200, "validation": 40, "test": 40}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """like: the data set whose fields the rows have. sizes: split -> rows; its splits without labels are not made."""

    dataset: str
    like: str
    sizes: dict[str, int] = field(default_factory=lambda: dict(SIZES))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.like not in LIKE:
            raise ValueError(f"like: {unknown('data set', self.like, LIKE)}")
        if not self.sizes or min(self.sizes.values()) < 1:
            raise ValueError(f"sizes is {self.sizes}; it names at least one split, and every split has a row")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """None: the data is made up."""


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """No metrics of its own. Rows of one split are not rows of another."""
    rng = random.Random(f"{spec.like} {spec.seed}")
    seen: set[str] = set()
    for name, count in spec.sizes.items():
        rows: list[dict[str, Any]] = []
        tries = 0
        while len(rows) < count:
            tries += 1
            if tries > 100 * count:
                raise ValueError(f"there are no {count} different rows for split {name!r}; make fewer")
            row = LIKE[spec.like](rng, len(rows))
            if (key := repr({k: v for k, v in row.items() if k != "label"})) not in seen:
                seen.add(key)
                rows.append(row)
        splits.add(name, {column: [row[column] for row in rows] for column in rows[0]})
    return {}


def _scene(rng: random.Random) -> dict[str, str]:
    one, two = rng.sample(PEOPLE, 2)
    colour, other = rng.sample(COLOURS, 2)
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    return {"one": one, "two": two, "colour": colour, "other": other, "thing": thing, "place": place}


def _inference(rng: random.Random, label: int) -> tuple[str, str]:
    """A premise, and a hypothesis that follows, is about somebody else, or has another colour."""
    s = _scene(rng)
    premise = "{one} has a {colour} {thing} in the {place}.".format(**s)
    said = ("{one} has a {thing}.", "{two} has a {thing}.", "The {thing} of {one} is {other}.")[label]
    return premise, said.format(**s)


def _pair(rng: random.Random, label: int) -> tuple[str, str]:
    """Two sentences that say the same, or the same words with the people changed about."""
    s = _scene(rng)
    first = "{one} gave {two} the {colour} {thing} in the {place}.".format(**s)
    said = (
        "The {colour} {thing} went from {two} to {one} in the {place}.",
        "In the {place} {two} got the {colour} {thing} from {one}.",
    )
    return first, said[label].format(**s)


def _story(rng: random.Random) -> tuple[str, str]:
    s = _scene(rng)
    told = "{one} went to the {place}. It was late. {one} found a {colour} {thing} there and took it home."
    return told.format(**s), "{one} found a {thing} in the {place}.".format(**s)


def _nli(first: str, second: str, labels: int) -> Any:
    def make(rng: random.Random, i: int) -> dict[str, Any]:
        one, two = _inference(rng, i % 3)
        return {first: one, second: two, "label": i % 3 if labels == 3 else int(i % 3 > 0)}

    return make


def _paraphrase(first: str, second: str, marks: tuple[float, float]) -> Any:
    def make(rng: random.Random, i: int) -> dict[str, Any]:
        one, two = _pair(rng, i % 2)
        return {first: one, second: two, "label": marks[i % 2]}

    return make


def _summary(document: str, summary: str) -> Any:
    return lambda rng, i: dict(zip((document, summary), _story(rng), strict=True))


def _siqa(rng: random.Random, i: int) -> dict[str, Any]:
    s = _scene(rng)
    answers = [s["one"], s["two"], rng.choice([name for name in PEOPLE if name not in (s["one"], s["two"])])]
    context = "{one} gave {two} a {colour} {thing}.".format(**s)
    asked = "Who {verb} the {thing}?".format(verb=("gave", "got")[i % 2], **s)
    return {
        "context": context,
        "question": asked,
        **dict(zip(("answerA", "answerB", "answerC"), answers)),
        "label": str(i % 2 + 1),
    }


def _facts(rng: random.Random) -> tuple[str, str, str, list[str]]:
    """A text, a question about it, the right answer, three wrong ones."""
    s = _scene(rng)
    text = "{one} put the {colour} {thing} into the {place}.".format(**s)
    wrong = rng.sample([colour for colour in COLOURS if colour != s["colour"]], 3)
    return text, "What colour is the {thing} of {one}?".format(**s), s["colour"], wrong


def _sciq(rng: random.Random, i: int) -> dict[str, Any]:
    text, asked, right, wrong = _facts(rng)
    return {
        "support": text,
        "question": asked,
        "correct_answer": right,
        **{f"distractor{k + 1}": w for k, w in enumerate(wrong)},
    }


def _tweet(rng: random.Random, i: int) -> dict[str, Any]:
    text, asked, right, _ = _facts(rng)
    return {"Tweet": text, "Question": asked, "Answer": [right]}


def _science(stem: str) -> Any:
    def make(rng: random.Random, i: int) -> dict[str, Any]:
        text, asked, right, wrong = _facts(rng)
        choices = wrong[: i % 4] + [right] + wrong[i % 4 :]
        return {
            stem: f"{text} {asked}",
            "choices": {"text": choices, "label": list("ABCD")},
            "answerKey": "ABCD"[i % 4],
        }

    return make


def _swag(rng: random.Random, i: int) -> dict[str, Any]:
    s = _scene(rng)
    ends = [f"puts the {thing} away." for thing in [s["thing"], *rng.sample([t for t in THINGS if t != s["thing"]], 3)]]
    ends = [*ends[1 : i % 4 + 1], ends[0], *ends[i % 4 + 1 :]]
    told = "{one} takes the {colour} {thing} out.".format(**s)
    return {"activity_label": "Tidying", "ctx_a": told, "ctx_b": s["one"], "endings": ends, "label": str(i % 4)}


def _boolq(rng: random.Random, i: int) -> dict[str, Any]:
    s = _scene(rng)
    asked = "is the {thing} of {one} {shown}".format(shown=s["colour"] if i % 2 else s["other"], **s)
    return {
        "passage": "{one} has a {colour} {thing} in the {place}.".format(**s),
        "question": asked,
        "answer": bool(i % 2),
    }


def _gsm8k(rng: random.Random, i: int) -> dict[str, Any]:
    s, (had, more) = _scene(rng), (rng.randint(2, 30), rng.randint(2, 30))
    asked = "{one} has {had} {thing}s and {two} brings {more} more. How many {thing}s are there?"
    worked = f"{had} + {more} = <<{had}+{more}={had + more}>>{had + more}\n#### {had + more}"
    return {"question": asked.format(had=had, more=more, **s), "answer": worked}


def _piqa(rng: random.Random, i: int) -> dict[str, Any]:
    s = _scene(rng)
    goal = "{one} wants the {thing} to be {colour}.".format(**s)
    ways = [f"Paint the {s['thing']} {colour}." for colour in (s["colour"], s["other"])]
    return {"goal": goal, **dict(zip(("sol1", "sol2"), ways[:: 1 - 2 * (i % 2)])), "label": i % 2}


def _winogrande(rng: random.Random, i: int) -> dict[str, Any]:
    s = _scene(rng)
    told = "{one} gave {two} the {thing}, so now _ has the {colour} {thing}.".format(**s)
    names = [s["two"], s["one"]][:: 1 - 2 * (i % 2)]
    return {"sentence": told, **dict(zip(("option1", "option2"), names)), "answer": str(i % 2 + 1)}


def _wikipedia(rng: random.Random, i: int) -> dict[str, Any]:
    stories = [" ".join(_story(rng)) for _ in range(3)]
    return {"title": f"Article {i}", "text": "\n\n".join(stories)}


def _alpaca(rng: random.Random, i: int) -> dict[str, Any]:
    text, asked, right, _ = _facts(rng)
    return {"instruction": asked, "input": text, "output": f"It is {right}."}


def _tulu(rng: random.Random, i: int) -> dict[str, Any]:
    text, asked, right, _ = _facts(rng)
    turns = [{"role": "user", "content": f"{text} {asked}"}, {"role": "assistant", "content": f"It is {right}."}]
    return {"dataset": "toys", "messages": turns}


LIKE: dict[str, Any] = {
    "mnli": _nli("premise", "hypothesis", 3),
    "gpt3nli": _nli("text_a", "text_b", 3),
    "rte": _nli("sentence1", "sentence2", 2),
    "paws": _paraphrase("sentence1", "sentence2", (0, 1)),
    "qqp": _paraphrase("question1", "question2", (0, 1)),
    "stsb": _paraphrase("sentence1", "sentence2", (1.0, 4.5)),
    "xsum": _summary("document", "summary"),
    "xlsum": _summary("text", "summary"),
    "cnn": _summary("article", "highlights"),
    "socialiqa": _siqa,
    "sciq": _sciq,
    "sciq_questions": _sciq,
    "tweetqa": _tweet,
    "arc_easy": _science("question"),
    "arc_challenge": _science("question"),
    "openbookqa": _science("question_stem"),
    "hellaswag": _swag,
    "boolq": _boolq,
    "gsm8k": _gsm8k,
    "piqa": _piqa,
    "winogrande": _winogrande,
    "wikipedia": _wikipedia,
    "alpaca": _alpaca,
    "tulu": _tulu,
}
