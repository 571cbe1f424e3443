"""Where a run is put together: the command line, the cluster, the loop and the phases."""
