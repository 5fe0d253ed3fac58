"""Where a model looks: maps over a picture, of the frozen model and of the adapted one, and their drawing."""
