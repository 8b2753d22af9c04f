"""The command line and the workers; the one package that knows submitit."""
