"""Systems to samples to features to statistics to metrics to the report."""
