"""One file an original format: how it is recognised and read, how its keys map, and what its layers compute."""
