"""HubSpot: the client, its tokens, what its messages say, and the portal's properties."""
