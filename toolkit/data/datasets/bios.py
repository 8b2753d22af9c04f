"""Synthetic biographies (bioS, arXiv 2309.14316): facts to memorize in pre-training and to extract after fine-tuning.

Splits: `pretrain` (`text`: biographies of all people, shuffled), `train` and `heldout` (questions about two disjoint
parts of the people: `prompt`, `completion`, `gold`, `attribute`, `person`). A model that answers held-out questions has
learned the facts in pre-training; fine-tuning taught it no more than how to answer.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from toolkit.data import people as world_of
from toolkit.data.splits import Splits
from toolkit.lookup import unknown
from toolkit.stage import Context

if TYPE_CHECKING:
    from numpy.random import Generator

BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Spec:
    """`people` people with `biographies` texts each.

    biographies: texts about each person, with paraphrases drawn anew for each ("multi" in the paper).
    paraphrases: different sentences for each attribute, at most 8.
    permute: draw the order of the six sentences anew for each biography.
    full_name: name the person in every sentence instead of a pronoun after the first.
    ask: attributes that questions are about. train_fraction: share of the people that `train` asks about.
    qa_in_pretrain: add the questions and answers of `train` to `pretrain` once, the paper's mixed training.
    """

    dataset: str
    people: int
    seed: int = 0
    biographies: int = 1
    paraphrases: int = 5
    permute: bool = True
    full_name: bool = False
    ask: tuple[str, ...] = world_of.ATTRIBUTES
    train_fraction: float = 0.5
    qa_in_pretrain: bool = False
    first_names: int = 400
    middle_names: int = 400
    last_names: int = 1000
    birth_years: int = 100
    cities: int = 200
    universities: int = 300
    majors: int = 100
    employers: int = 263

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type in (int, "int") and field.name != "seed" and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; it must be at least 1")
        if self.people < 2:
            raise ValueError("people is 1; at least 2 are needed, one to train on and one to hold out")
        for name, limit in (("paraphrases", world_of.PARAPHRASES), ("majors", world_of.MAJORS)):
            if getattr(self, name) > limit:
                raise ValueError(f"{name} is {getattr(self, name)}; there are {limit} to choose from")
        for attribute in self.ask:
            if attribute not in world_of.ATTRIBUTES:
                raise ValueError(f"ask: {unknown('attribute', attribute, world_of.ATTRIBUTES)}")
        if not self.ask or len(set(self.ask)) < len(self.ask):
            raise ValueError(f"ask must name at least one attribute and none twice, not {list(self.ask)}")
        if not 0 < self.train_fraction < 1:
            raise ValueError(f"train_fraction is {self.train_fraction}; it must lie between 0 and 1")
        names = self.first_names * self.middle_names * self.last_names
        if names < self.people:
            raise ValueError(
                f"{self.people} people need different names, and first_names x middle_names x last_names gives only "
                f"{names}; raise one of them"
            )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Needs nothing."""


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: `chance_<attribute>`, the share of the most frequent answer in `heldout`, and their mean."""
    import numpy as np

    rng = np.random.default_rng(spec.seed)
    sizes = world_of.Sizes(**{f.name: getattr(spec, f.name) for f in fields(world_of.Sizes)})
    world = world_of.make_world(spec.people, sizes, rng)
    shuffled = rng.permutation(spec.people)
    cut = min(max(round(spec.people * spec.train_fraction), 1), spec.people - 1)
    train, heldout = np.sort(shuffled[:cut]).tolist(), np.sort(shuffled[cut:]).tolist()
    for texts in _pretrain(spec, world, train, rng, ctx):
        splits.add("pretrain", {"text": texts})
    for name, members in (("train", train), ("heldout", heldout)):
        for start in range(0, len(members), BATCH):
            splits.add(name, _questions(spec, world, members[start : start + BATCH]))
    return _chance(spec, world, heldout)


def _pretrain(
    spec: Spec, world: world_of.World, train: list[int], rng: "Generator", ctx: Context
) -> Iterator[list[str]]:
    """Biographies, and answered questions if they are asked for, in one random order; lists of at most 1000 texts."""
    bios, asked = spec.people * spec.biographies, len(train) * len(spec.ask) * spec.qa_in_pretrain
    order = rng.permutation(bios + asked)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH].tolist()
        paraphrase = rng.integers(spec.paraphrases, size=(len(batch), len(world_of.ATTRIBUTES))).tolist()
        sentences = [list(range(len(world_of.ATTRIBUTES)))] * len(batch)
        if spec.permute:
            sentences = rng.random((len(batch), len(world_of.ATTRIBUTES))).argsort(axis=1).tolist()
        texts = []
        for i, numbers, arranged in zip(batch, paraphrase, sentences, strict=True):
            if i < bios:
                texts.append(world_of.biography(world, i // spec.biographies, numbers, arranged, spec.full_name))
            else:
                person, attribute = train[(i - bios) // len(spec.ask)], spec.ask[(i - bios) % len(spec.ask)]
                texts.append(f"{world_of.question(world, person, attribute)} {world.values[attribute][person]}")
        ctx.progress(start + len(batch), len(order), unit="document")
        yield texts


def _questions(spec: Spec, world: world_of.World, members: list[int]) -> dict[str, list[str]]:
    rows = [(person, attribute) for person in members for attribute in spec.ask]
    gold = [world.values[attribute][person] for person, attribute in rows]
    return {
        "prompt": [world_of.question(world, person, attribute) for person, attribute in rows],
        "completion": [f" {answer}" for answer in gold],
        "gold": gold,
        "attribute": [attribute for _, attribute in rows],
        "person": [world.names[person] for person, _ in rows],
    }


def _chance(spec: Spec, world: world_of.World, heldout: list[int]) -> dict[str, float]:
    """What always giving the most frequent held-out answer would score, attribute by attribute."""
    chance = {}
    for attribute in spec.ask:
        counts = Counter(world.values[attribute][person] for person in heldout)
        chance[f"chance_{attribute}"] = max(counts.values()) / len(heldout)
    return {**chance, "chance_mean": sum(chance.values()) / len(chance)}
