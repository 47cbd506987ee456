"""Environments: the protocol, the adapter to gymnax, and probes that isolate one ability each."""
