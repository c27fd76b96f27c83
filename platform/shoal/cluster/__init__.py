"""Running on a Ray cluster. Only this folder imports ray, and only in the modules that need a cluster."""
