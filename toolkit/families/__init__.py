"""One file a family: `MODELS` says which models it has, where their revisions are and how to read their names."""

from toolkit import lookup
from toolkit.checkpoints.revisions import Model


def models() -> dict[str, Model]:
    """Every model that a family names, by its short name."""
    families = [lookup.find(__name__, name, "family") for name in lookup.names(__name__)]
    return {name: model for family in families for name, model in family.MODELS.items()}


def find(name: str) -> Model:
    """A model by its short name (`olmo-1b`), or any repository of the Hub (`org/name`), whose branches are tried with
    the usual patterns.

    Raises:
        ValueError: no family has it; the message lists the nearest.
    """
    known = models()
    if name in known:
        return known[name]
    if "/" in name:
        return next((model for model in known.values() if model.repo == name), Model(repo=name))
    raise ValueError(f"{lookup.unknown('model', name, known)}; or any repository of the Hub, ORG/NAME")
