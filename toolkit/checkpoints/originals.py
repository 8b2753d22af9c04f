"""Unsharded originals of OLMo: a folder on a web server that lists nothing, `config.yaml` and `model.*` in it.

Which of the files are there is found by HEAD: published lists have gaps. Optimizer states (`optim.*`, two thirds of the
bytes) are left where they are.
"""

import re
from concurrent.futures import ThreadPoolExecutor

from toolkit.checkpoints.hub import File
from toolkit.checkpoints.web import Refused, Web, shown

CONFIG = "config.yaml"
WEIGHTS = ("model.safetensors", "model.pt")  # the first that is there


def files(web: Web, url: str) -> list[File]:
    """Config and weights of an original.

    Raises:
        ValueError: one of them is not there.
    """
    with ThreadPoolExecutor() as threads:
        config, *weights = threads.map(lambda name: _head(web, url, name), (CONFIG, *WEIGHTS))
    found = next((file for file in weights if file is not None), None)
    if config is None or found is None:
        lacks = CONFIG if config is None else " and ".join(WEIGHTS)
        raise ValueError(
            f"{shown(url)} holds no unsharded original: there is no {lacks}; choose another step or source"
        )
    return [config, found]


def _head(web: Web, url: str, name: str) -> File | None:
    address = f"{url.rstrip('/')}/{name}"
    try:
        headers = web.ask("HEAD", address).headers
    except Refused as error:
        if error.status in (403, 404, 410):  # storage without a listing says 403 of what is not there
            return None
        raise
    if "Content-Length" not in headers:
        raise ValueError(f"{shown(address)}: the server does not tell its size")
    etag = headers.get("ETag", "")
    # The ETag of a file that was stored in one piece is its MD5; of one in several pieces (hex, dash, count) it is not.
    md5 = re.fullmatch(r'"([0-9a-f]{32})"', etag)
    digest = f"md5:{md5[1]}" if md5 else ""
    return File(path=name, size=int(headers["Content-Length"]), digest=digest, url=address, etag=etag)
