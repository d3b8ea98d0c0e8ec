"""The command line: one file a group of commands; `app` holds them together and turns errors into exit codes."""
