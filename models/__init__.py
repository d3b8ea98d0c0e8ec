"""The focus model: its data, its definition, its training and its export. Never imported by the daemon."""
