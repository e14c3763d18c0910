"""The settings of a run: typed schema, YAML reading, shipped files."""
