"""Rows to tables, statistics, figures and the report; and the way in for a notebook:

    from toolkit.analysis import load, load_published
    frame = load("configs/studies/quickstart.yaml")           # one row a measurement, missing cells included
    paper = load_published("amuro", "path/to/the/released/tables")  # the same columns

`dynamics` and `trends` work on such frames; `paired` on the items of two cells.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def load(study: str | Path, root: str | Path | None = None, sets: Sequence[str] = ()) -> "pd.DataFrame":
    """The long table of a study as it stands now: what `tidemark table STUDY` prints, as a pandas frame.

    A cell that is not done has a row for each task and metric that its neighbours measured (`gaps.spread_gaps`), so
    that choosing a metric does not lose it.

    Args:
        study: the study file. root: as `--root`; TIDEMARK_ROOT or `runs` by default. sets: as `--set`.

    Raises:
        ValueError: what is wrong with the study, or an artifact's rows are malformed.
    """
    from toolkit import study_file
    from toolkit.analysis.gaps import spread_gaps
    from toolkit.analysis.table import measure
    from toolkit.expand import expand
    from toolkit.lookup import find
    from toolkit.manifest.adopt import content_fingerprint
    from toolkit.plan import folder, survey
    from toolkit.study import axes

    words = study_file.load(Path(study), sets)
    home = Path(root or os.environ.get("TIDEMARK_ROOT", "runs")).expanduser().absolute()
    cells = expand(
        words,
        lambda name: find("jobs", name, "job"),
        lambda path: content_fingerprint(path, home / "index" / "content.json")[0],
    )
    states = survey(home, words.name, cells)
    folders = {c.fingerprint: folder(home, c) for c in cells if states[c.fingerprint].state == "done"}
    index = home / "index" / f"rows-{words.name}.parquet"
    return to_frame(spread_gaps(measure(cells, states, folders, axes(cells), index)))


def load_published(source: str, path: str | Path) -> "pd.DataFrame":
    """Published results as a frame of the same columns, without a study or a root.

    Raises:
        ValueError: an unknown source, or files that are not what was released.
    """
    import json

    import pandas as pd

    from toolkit.lookup import find

    rows = find("toolkit.analysis.published", source, "source").read(Path(path))
    coords = [json.loads(row["coords"]) for row in rows]
    axes = list(dict.fromkeys(axis for at in coords for axis in at))
    columns = {axis: [at.get(axis) for at in coords] for axis in axes}
    values = {name: [row[name] for row in rows] for name in ("task", "metric", "value", "stderr", "n")}
    frame = pd.DataFrame({"stage": source, "job": "published", **columns, **values, "state": "done"})
    whole = [c for c in frame if all(isinstance(v, int) for v in {**columns, **values}.get(c, [""]) if v is not None)]
    return frame.astype({name: "Int64" for name in whole})


def to_frame(table: "pa.Table") -> "pd.DataFrame":
    """A long table as a pandas frame: text as text, whole numbers as `Int64` (which knows missing ones)."""
    import pandas as pd
    import pyarrow as pa

    from toolkit.analysis.formats import full

    return full(table).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
