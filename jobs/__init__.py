"""One thin file a job: VERSION, Spec (or CHOICE), Inputs, run(). `load` finds a job by its module name."""

from types import ModuleType

from toolkit import lookup


def load(name: str) -> ModuleType:
    """The module of a job.

    Raises:
        ValueError: there is no such job; the message lists those that exist.
    """
    return lookup.find("jobs", name, "job")
