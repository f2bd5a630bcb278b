"""Work directories: their files, checkpoints and logs."""
