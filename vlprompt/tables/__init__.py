"""Tables of results, derived from records: mean and deviation over seeds, for the terminal and for papers."""

from vlprompt.tables.rendering import DEMO_NOTE, FORMATS, PRECISION_NOTE, render
from vlprompt.tables.summaries import frame, summarise

__all__ = ["DEMO_NOTE", "FORMATS", "PRECISION_NOTE", "frame", "render", "summarise"]
