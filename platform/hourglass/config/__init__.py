"""The files that a command takes: jobs, sweeps and endpoints, read and validated."""
