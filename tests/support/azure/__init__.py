"""Stand-ins for Azure: Entra ID, managed identities, Key Vault and Container Registry, for the real SDK clients."""
