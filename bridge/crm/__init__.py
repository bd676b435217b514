"""HubSpot: the client, its tokens, what its messages say, and what the portal tells of its properties."""
