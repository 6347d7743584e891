"""Pages about runs: values in, HTML out."""
