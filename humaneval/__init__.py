"""Human preference studies: study, assignment, store, statistics."""
