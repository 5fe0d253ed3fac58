"""What draws charts and sorts tables in the page: plotly.js and DataTables, as Python packages ship them."""

import re
from dataclasses import dataclass
from importlib import metadata, resources

from vlprompt.errors import UserError

MISSING = "a report needs plotly and itables, and {} is not installed: pip install 'vlprompt[report]'"
EXPORTS = re.compile(r"export\s*\{([^}]*)\}")


@dataclass(frozen=True)
class Libraries:
    """Sources to stand between <script> tags. Both are under the MIT licence, which they carry in a comment."""

    plotly: str
    tables: str  # leaves `jQuery`, with DataTables in it, in the page


def load() -> Libraries:
    """Raises: UserError where a package is missing, or ships something else than expected."""
    bundle = _text("itables", "html/dt_bundle.js")
    exports = list(EXPORTS.finditer(bundle))
    names = re.search(r"([\w$]+) as jQuery\b", exports[-1][1]) if exports else None
    if names is None:
        raise UserError(f"itables {metadata.version('itables')} ships no jQuery: install another version of it")
    start, end = exports[-1].span()
    bundle = f"{bundle[:start]}globalThis.jQuery={names[1]}{bundle[end:]}"  # nobody can import from within a page
    return Libraries(_inline(_text("plotly", "package_data/plotly.min.js")), _inline(bundle))


def _text(package: str, path: str) -> str:
    try:
        return resources.files(package).joinpath(path).read_text(encoding="utf-8")
    except (ImportError, OSError):
        raise UserError(MISSING.format(package)) from None


def _inline(script: str) -> str:
    """A script that does not end its own element: what would end it occurs in texts alone."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE)
