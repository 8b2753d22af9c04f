"""One file for each set of published results: Spec (with `source`), Inputs, run(spec, inputs, out, ctx)."""
