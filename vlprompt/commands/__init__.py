"""Sub-commands of `vlprompt`: each registers its arguments and imports what it needs when it is called."""
