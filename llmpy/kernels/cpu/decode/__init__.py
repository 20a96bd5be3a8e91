"""One decode step of a whole model in one compiled call."""
