"""One file a controller; the name of the protocol is the module's."""
