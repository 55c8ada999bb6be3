"""Fill the documents' tables from the run records in eval/results/: no figure is typed.

    python eval/tables.py            # README.md, eval/README.md and the models' cards
    python eval/tables.py --check    # change nothing; fail if a table is stale
    python eval/tables.py --table 3  # a table of the paper beside ours; or --figure 8-left

A table stands in a document between the lines `<!-- table NAME -->` and `<!-- end -->`. NAME is a
row of `layouts.TABLES`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from layouts import TABLES
from paper import PAPER_FIGURES, PAPER_TABLES
from reporting import run

from imagebart.checkpoint import atomic_write

ROOT = Path(__file__).parents[1]
PRETRAINED = ROOT / "imagebart" / "pretrained"
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "eval" / "README.md",
    PRETRAINED / "scenery" / "README.md",
)
PLACE = re.compile(r"(<!-- table (\S+) -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Config:
    check: bool = False  # change nothing
    table: Literal[tuple(PAPER_TABLES)] | None = None  # print this table of the paper beside ours
    figure: Literal[tuple(PAPER_FIGURES)] | None = None  # or this figure


def main(config: Config) -> None:
    if config.table or config.figure:
        both = ((PAPER_TABLES, config.table), (PAPER_FIGURES, config.figure))
        print(*(tables[name]() for tables, name in both if name), sep="\n\n")
        return
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        stale = [name for name, now, due in tables_in(text) if now != due]
        if config.check and stale:
            raise ValueError(
                f"{path}: tables must agree with their run records, got stale ones: {stale}"
            )
        if stale:
            with atomic_write(path) as draft:
                draft.write_text(fill(text), encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: {', '.join(stale)}")


def tables_in(text: str) -> list[tuple[str, str, str]]:
    """(name, current table, table computed from its records) of every place."""
    places = [(place, due(place[2])) for place in PLACE.finditer(text)]
    return [(place[2], place[3].removesuffix("\n"), table) for place, table in places]


def fill(text: str) -> str:
    return PLACE.sub(lambda place: f"{place[1]}{due(place[2])}\n", text)


def due(name: str) -> str:
    if name not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}, got {name!r}")
    return TABLES[name]()


if __name__ == "__main__":
    run(main, Config, __doc__)
