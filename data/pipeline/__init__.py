"""The machine that all rooms use: config, artifacts, stages, runner, executors, runs, lineage."""
