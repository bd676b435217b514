"""Partner Bridge: partner webhooks in, HubSpot batch updates out."""

__version__ = "0.1.0"
