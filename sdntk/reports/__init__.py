"""Reports: the tables and figures of each experiment."""
