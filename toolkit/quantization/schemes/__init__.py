"""One file a scheme: `Spec` with the field `scheme`, `Inputs`, `run(spec, inputs, out, ctx)`."""
