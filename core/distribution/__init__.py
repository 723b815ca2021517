"""The client of OCI registries, in the words of the OCI distribution specification 1.1."""
