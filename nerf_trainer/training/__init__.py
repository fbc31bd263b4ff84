"""Running a training: factories, the loop, one step, checkpoints, statistics, devices and seeds."""
