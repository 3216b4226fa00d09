"""The report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any


def page(results: dict[str, Any], images: dict[str, bytes]) -> str:
    """Tables, plots (as data URLs), how each layer was compiled, and the machine."""
    import jinja2

    from tvm_doping.bench import report

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    sections = [
        {
            "title": report.TITLES[scope],
            "headline": report.headline(results, scope),
            "heads": [head for t in report.steps_of(results, scope) for head in report.heads(scope, t)],
            "rows": list(report.rows(results, scope)),
            "image": base64.b64encode(images[scope]).decode(),
            "facts": results["model"][scope],
        }
        for scope in report.scopes(results)
    ]
    template = environment.get_template("report.html")
    return template.render(
        results=results,
        sections=sections,
        caption=report.caption(results),
        doped=report.DOPED,
        explanation=report.EXPLANATION,
    )
