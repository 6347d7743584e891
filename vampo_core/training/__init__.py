"""What every training shares: the loop, the optimizer, run folder, checkpoints, signals, trackers."""
