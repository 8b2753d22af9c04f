"""The job `merge`: methods by name (the method itself: tests/toolkit/merging)."""

import pytest

from jobs import merge
from toolkit import lookup
from toolkit.spec import build


def test_methods_by_name() -> None:
    method = lookup.find(merge.CHOICE.package, "delta", "method")
    assert build(method.Spec, {"method": "delta", "scale": "0.5"}).scale == 0.5
    with pytest.raises(ValueError, match="unknown method .dleta.; did you mean .delta."):
        lookup.find(merge.CHOICE.package, "dleta", "method")
    with pytest.raises(ValueError, match="unknown field .scael.; did you mean .scale."):
        build(method.Spec, {"method": "delta", "scael": 1})
