"""The Python blocks of the documents, each with all that a reader pastes before it."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_BLOCK = re.compile(r'^```python(?: title="(set-up.*?)")?\n(.*?)^```', flags=re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """One block.

    Attributes:
        page: name of the file.
        heading: of its section.
        index: within the section, set-ups not counted.
        text: as it stands there.
        before: the set-ups, which its reader pastes first.
    """

    page: str
    heading: str
    index: int
    text: str
    before: str

    @property
    def id(self) -> str:
        """Names it in a test."""
        return f"{self.page.removesuffix('.md')}: {self.heading} {self.index}"


def sections(text: str) -> list[tuple[str, str]]:
    """Heading and body, in order; the first has no heading."""
    parts = ["", *re.split(r"^## (.*)\n", text, flags=re.MULTILINE)]
    return list(zip(parts[::2], parts[1::2], strict=True))


def blocks(page: Path) -> list[Block]:
    """Every block of a page that is not a set-up.

    A block with the title "set-up" comes before all blocks below it; "set-up: HEADING" before those of that section.
    """
    found = []
    before: dict[str, str] = {}
    for heading, body in sections(page.read_text()):
        index = 0
        for title, text in _BLOCK.findall(body):
            if title:
                before[title] = text
                continue
            setups = before.get("set-up", "") + before.get(f"set-up: {heading}", "")
            found.append(Block(page.name, heading, index, text, setups))
            index += 1
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
