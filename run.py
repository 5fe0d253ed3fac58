"""Adapt a frozen model and test it: python run.py method=coop dataset=caltech101 (see README.md)."""

import sys

from vlprompt.sweep import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
