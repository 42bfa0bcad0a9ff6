"""The HTTP API: lets the world speak to the service. Routes by subject; service/protocol.py lists them all."""
