"""The lower bounds of pyproject.toml as constraints for pip: `python tests/support/lowest_versions.py > lowest.txt`.

>>> constraint("httpx2>=2,<3"), constraint("ruamel.yaml>=0.18.6,<0.20")
('httpx2==2', 'ruamel.yaml==0.18.6')
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
APART = ("test", "vllm")  # tools, of which nothing is promised; what runs in an environment of its own


def constraint(requirement: str) -> str:
    """The lowest version that a requirement allows. Every requirement has a lower bound."""
    found = re.match(r"([A-Za-z0-9._-]+)>=([0-9][0-9a-z.]*)", requirement)
    assert found, f"{requirement} has no lower bound"
    return f"{found[1]}=={found[2]}"


def older(library: str, version: str) -> bool:
    """Whether an installed library is older than a version: for tests of words that others chose."""
    own, wanted = (tuple(map(int, text.split(".")[:2])) for text in (metadata.version(library), version))
    return own < wanted


def constraints() -> list[str]:
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for name, own in extras.items() if name not in APART for one in own)]
    return sorted(set(map(constraint, asked)))


if __name__ == "__main__":
    sys.stdout.write("".join(f"{line}\n" for line in constraints()))
