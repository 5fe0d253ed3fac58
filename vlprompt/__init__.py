"""vlprompt: one benchmark suite for adapting frozen vision-language models."""

__version__ = "0.1.0"
