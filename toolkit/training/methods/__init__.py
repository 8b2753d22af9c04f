"""One file a training method: Spec (with `method`), Inputs, run(spec, inputs, out, ctx)."""
