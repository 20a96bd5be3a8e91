"""The training loop, and everything that a run needs around it: settings, data, optimizer, checkpoints, logs."""
