"""Training: the loop, the paper's optimizer and schedule, checkpoints that survive a crash."""
