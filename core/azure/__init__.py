"""Azure without Prefect: clouds, identities and Key Vault, by Azure's own SDK, which is loaded when it is needed."""
