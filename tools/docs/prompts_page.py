"""Reference page of the prompts: every style and format, as the code builds them."""

from __future__ import annotations

from names import PROMPTS, load
from recipe_keys import HEADER


def page() -> str:
    """Every style and format, with one demonstration; white space at the end of the prompt is the lead."""
    build, make_format, demonstration, paper, bbh_style = (load(name) for name in PROMPTS)
    shots = (demonstration("{question of demonstration}", "{answer}", "{rationale}"),)
    styles = (
        ("All sets but BBH", paper, ""),
        ("BBH", bbh_style("bbh/navigate"), "{instruction of the task}"),
        ("BBH, sports_understanding", bbh_style("bbh/sports_understanding"), "{instruction of the task}"),
    )
    lines = [
        HEADER.format(title="Prompts"),
        "# Prompts\n",
        "Each prompt is shown as a T5 model reads it. A decoder-only model also reads the lead. `{question}` is the text",
        "of the question. The examples have one demonstration; prompts may have several. BBH has its three official",
        "demonstrations. A student with a chat template gets the same turns in its template, with demonstrations as",
        "earlier turns.\n",
    ]
    for title, style, instruction in styles:
        lines.append(f"## {title}\n")
        for format in (make_format(few, rationale) for few in (False, True) for rationale in (False, True)):
            prompt = build("{question}", format, shots, style=style, instruction=instruction)
            lines.append(f"### {format.name}\n\nLead: `{prompt.lead!r}`\n\n```text\n{prompt.plain}\n```\n")
    return "\n".join(lines)
