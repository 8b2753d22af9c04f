"""docs/analysis.md prints what it says: each block is run, in order, and compared."""

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(not (ROOT / "../shared/amuro").is_dir(), reason="the released tables are not here")
def test_the_page_prints_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs/analysis.md").read_text().replace("\n```", "\n\n```")  # an output ends where its block does
    page = doctest.DocTestParser().get_doctest(text, {}, "analysis.md", "analysis.md", 0)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(page, out=said.append)
    assert result.attempted > 35 and result.failed == 0, "".join(said)
