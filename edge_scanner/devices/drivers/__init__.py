"""One file a driver; the configured name is the module's. `rig` finds them, nothing else imports them."""
