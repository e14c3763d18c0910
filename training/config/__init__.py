"""Every value that a run takes: typed schema, YAML reading, shipped files."""
