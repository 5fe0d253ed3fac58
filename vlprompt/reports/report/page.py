"""The page as HTML: Jinja escapes all texts, and a policy in its head lets it run and load nothing else."""

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

from vlprompt import __version__
from vlprompt.reports.escapes import terminal
from vlprompt.reports.report import libraries
from vlprompt.reports.report.charts import Chart, Styles
from vlprompt.results.metrics import METRICS

TEMPLATES = "templates"
BREAKS = re.compile(r"[_,](?=\w)")


def render(content: dict[str, Any], title: str, command: str, folders: str = "") -> str:
    """The page. Raises: UserError where the libraries for charts and tables are missing."""
    shipped = libraries.load()
    scripts = [shipped.plotly, shipped.tables, _file("report.js")]
    environment = Environment(
        loader=PackageLoader(__package__, TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters |= {"chart_json": partial(chart_json, styles=content["styles"]), "digits": digits}
    environment.filters |= {"score_names": score_names, "breakable": breakable}
    return environment.get_template("page.html").render(
        **content,
        title=title,
        command=command,
        plot_folders=folders,
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup(_file("style.css")),
        scripts=[Markup(script) for script in scripts],
        policy=policy(scripts),
    )


def shown(value: Any) -> Any:
    """What stands in the page: of texts, one line of printable characters."""
    text = isinstance(value, str) and not isinstance(value, Markup)
    return terminal(value) if text and not value.isprintable() else value


def chart_json(chart: Chart, styles: Styles) -> Markup:
    """What the page's script draws, harmless within <script>."""
    names = {trace["meta"] for view in chart.views for trace in view.data if "meta" in trace}
    marks = {name: (style.colour, style.mark) for name, style in styles.known.items() if name in names}
    views = [{"label": terminal(view.label), "data": view.data, "layout": view.layout} for view in chart.views]
    return htmlsafe_json_dumps(finite({"title": chart.title, "styles": marks, "views": views}), separators=(",", ":"))


def finite(value: Any) -> Any:
    """The same without numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digits(value: Any) -> str:
    return format(value, ",.4g") if isinstance(value, int | float) else str(value)


def breakable(text: str) -> Markup:
    """A text that may break after an underscore and a comma, and not after ±."""
    escaped = str(escape(shown(text))).replace("± ", "±\u00a0")
    return Markup(BREAKS.sub(r"\g<0><wbr>", escaped))  # of what is escaped


def score_names(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of all tests; the metrics of the package first."""
    names = dict.fromkeys(name for of_test in scores.values() for name in of_test)
    return sorted(names, key=lambda name: name not in METRICS)


def policy(scripts: list[str]) -> str:
    """A Content-Security-Policy: these scripts alone run, pictures lie in the page, nothing is fetched or sent."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    loaded = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    return f"{loaded}; form-action 'none'"


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(TEMPLATES).joinpath(name).read_text(encoding="utf-8")
