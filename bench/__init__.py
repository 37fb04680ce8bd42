"""``make bench``: what Hyperflow's data plane and its DAGs cost, beside the tools that people use without it."""
