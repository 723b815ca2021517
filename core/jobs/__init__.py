"""Training jobs: what is to be run, in which ready image, and the launchers that run it."""
