"""Reports of finished and running jobs, made from their run directories alone."""
