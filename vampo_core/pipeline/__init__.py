"""Whole pieces of work: begin, continue or find a run; prepare data and models; the chain; samples; pages."""
