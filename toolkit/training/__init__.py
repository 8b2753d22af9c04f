"""Training: the numbers of a run, the engine that runs it exactly, one file a method."""
