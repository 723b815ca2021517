"""Everything that would exist without Prefect: definitions, locks, images, registries, versions."""
