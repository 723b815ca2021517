"""Images as the OCI image specification describes them: no network, no registry."""
