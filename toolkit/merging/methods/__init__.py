"""One file a merge method: Spec (with `method`), Inputs, run(spec, inputs, out, ctx)."""
