"""Adapt a frozen model and test it: python run.py method=coop dataset=caltech101 (see README.md)."""

import sys

if __name__ == "__main__":
    try:
        from vlprompt.sweep import main
    except KeyboardInterrupt:  # while modules are loaded
        print("\nstopped by Ctrl-C: nothing was begun", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    sys.exit(main(sys.argv[1:]))
