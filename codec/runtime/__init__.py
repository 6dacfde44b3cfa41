"""What every run needs: the accelerator, run folders, checkpoints, seeded order, progress."""
