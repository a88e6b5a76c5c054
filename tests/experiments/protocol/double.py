"""Stands in for `ldm.experiments.protocol.worker`: makes up scores that depend on the cell alone.

Its environment says how long it takes (DOUBLE_SECONDS), which cells fail (DOUBLE_FAILS, a name) and
where it notes that it has begun (DOUBLE_TRACE, a file).
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from ldm.experiments.protocol.cells import Cell
from ldm.experiments.protocol.folder import CELL, SCORES, TIMES, WORD
from ldm.experiments.protocol.worker import Leash
from ldm.util import write_json, write_whole

Leash()
folder = Path(sys.argv[1])
cell = Cell.from_json((folder / CELL).read_text())
with open(os.environ["DOUBLE_TRACE"], "a") as trace:
    trace.write(f"{cell.name}\n")
time.sleep(float(os.environ.get("DOUBLE_SECONDS", "0")))
if os.environ.get("DOUBLE_FAILS") == cell.name:
    sys.exit("error: made to fail")
chance = random.Random(cell.score_hash)


def estimate() -> dict[str, float]:
    value = chance.random()
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


prompts = [
    {"prompt": text, "mean": estimate(), "of_average": estimate(), "images": 2}
    for text in cell.score["prompts"]
]
write_whole(folder / WORD, cell.learn_hash.encode())
write_json(folder / TIMES, {"learn": time.time() % 7, "steps": 3, "score": 1.0, "pictures": 2})
scores = {name: estimate() for name in ("image", "text", "text_of_average")}
facts = {"training": 0.5, "word_norm": 1.0, "vocabulary_norm": 0.5, "prompts": prompts}
hashes = {"learn_hash": cell.learn_hash, "score_hash": cell.score_hash}
write_json(folder / SCORES, {**hashes, **facts, **scores})
