"""Every document's links and anchors lead somewhere, and what it shows as code can be read as such."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_anchors_name_a_heading(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", document.read_text())):
        path, hash_, anchor = target.partition("#")
        if hash_ and not target.startswith(("http://", "https://")):
            assert anchor in anchors((document.parent / path) if path else document), f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_code_can_be_read(document):
    for _, language, block in FENCE.findall(document.read_text()):
        if language == "python":
            ast.parse(block)
        elif language == "yaml":
            yaml.safe_load(block)
        elif language == "bash":
            subprocess.run(["bash", "-n", "-c", block], check=True)


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", document.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
