"""The solver pass: few second-order steps in place of the many steps of the pipeline's own scheduler."""
