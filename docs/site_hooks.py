"""The documents as a site: the README is its first page, figures are copied, other files are linked in the repository.

The documents themselves are written to be read where they lie, in a checkout or on a code host.
"""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
FIGURES = "experiments/figures"


class Examples(griffe.Extension):
    """Doctests stand under `Example:` in this project, under `Examples:` where they are read as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section of one docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README and the figures of the experiments."""
    files.append(File.generated(config, "index.md", content=_as_in_docs((ROOT / "README.md").read_text())))
    for path in sorted((ROOT / FIGURES).glob("*.png")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, config: MkDocsConfig, **_: Any) -> str:
    """Point links that leave the folder at the copied figures, or at the repository."""
    markdown = markdown.replace(f"](../{FIGURES}/", "](figures/")
    return re.sub(r"\]\(\.\./", f"]({config.repo_url}/blob/main/", markdown)


def _as_in_docs(text: str) -> str:
    """The README with its links as they would be in this folder."""
    return re.sub(r"\]\((?!https?:|#)", "](../", text).replace("](../docs/", "](")
