"""Control over ZeroMQ: messages, server and client."""
