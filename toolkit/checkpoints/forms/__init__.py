"""One file a way to store a model as a change to another: `restore(folder, base, out)` fills `out` with the whole one.

`folder` holds the change, `base` is a plain model folder. What cannot be restored exactly raises ValueError.
"""
