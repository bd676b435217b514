"""A local CRM that honours HubSpot's batch-update contract."""
