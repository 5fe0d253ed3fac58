"""Methods: one file each, under the name of its paper."""
