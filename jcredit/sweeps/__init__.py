"""Many runs on the hardware there is: their programs, rows, checkpoints and kept networks."""
