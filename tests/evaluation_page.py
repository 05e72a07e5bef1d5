"""The prompts of docs/evaluation.md, from the code: `python tests/evaluation_page.py` writes them into the page."""

from __future__ import annotations

from pathlib import Path

from potstill import prompts
from potstill.data import bbh
from potstill.prompts import Demonstration, PromptFormat, PromptStyle

PAGE = Path(__file__).parent.parent / "docs" / "evaluation.md"
BEGIN, END = "<!-- prompts: made by tests/evaluation_page.py -->\n", "<!-- end of prompts -->\n"
SHOTS = (Demonstration("{question of demonstration}", "{answer}", "{rationale}"),)


def made() -> str:
    """Every style and format, with one demonstration; white space at the end of the prompt is the lead."""
    styles = (
        ("GSM8K, MultiArith, ASDiv, SVAMP and sets of your own", prompts.PAPER_STYLE, ""),
        ("BBH", bbh.bbh_prompt_style("bbh/navigate"), "{instruction of the task}"),
        ("BBH, sports_understanding", bbh.bbh_prompt_style("bbh/sports_understanding"), "{instruction of the task}"),
    )
    return "\n".join(_style(title, style, instruction) for title, style, instruction in styles)


def _style(title: str, style: PromptStyle, instruction: str) -> str:
    lines = [f"### {title}\n"]
    for format in (PromptFormat(few, rationale) for few in (False, True) for rationale in (False, True)):
        prompt = prompts.build_prompt("{question}", format, SHOTS, style=style, instruction=instruction)
        lines.append(f"`{format.name}`, lead `{prompt.lead!r}`:\n\n```\n{prompt.plain}\n```\n")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its prompts made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + made() + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
