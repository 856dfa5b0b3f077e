"""Systems to generated images to features to statistics to metrics to the report."""
